"""Continuous traffic: requests of different lengths that never run out, for what must hold after many steps.

The queue is always longer than the batch, so that a slot that falls free is taken at once. Prompts and limits are a
function of the request's number and repeat after `period` requests: memory that still grows after the first period is
kept by mistake, or by a method that learns.

Example: `drive(engine, 200)` makes 200 steps; `drive(engine, 800)` goes on with the same traffic.
"""

import random

from outrider.engine import Engine
from outrider.sampling import Sampling

__all__ = ["drive"]

PHRASE, REPEATS, LIMITS = 4, 3, (1, 3, 8, 17, 30)


def drive(engine: Engine, num_steps: int, period: int = 24) -> None:
    """Make `num_steps` steps, with requests waiting all the time; every other request samples."""
    for _ in range(num_steps):
        while len(engine.waiting) <= engine.batch.num_slots:
            _add(engine, engine.num_requests % period)
        with engine.hosting():
            engine.admit()
            engine.step()


def _add(engine: Engine, number: int) -> None:
    draw = random.Random(number)
    vocab_size = engine.spec.vocab_size
    phrase = [draw.randrange(vocab_size) for _ in range(draw.randint(1, PHRASE))]
    longest = max(1, engine.batch.max_positions // 2)
    prompt = (phrase * draw.randint(1, REPEATS) + phrase[:1])[:longest]
    sampling = Sampling(temperature=0.8, seed=number) if number % 2 else Sampling()
    engine.add(prompt, max_new_tokens=draw.choice(LIMITS), sampling=sampling, ignore_eos=True)
