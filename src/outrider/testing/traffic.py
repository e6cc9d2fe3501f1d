"""Continuous traffic: requests of different lengths in an endless queue, for what must hold after many steps.

Traffic comes in rounds. A round queues the same `NUM_REQUESTS` requests at once, more than the batch has slots, and
ends when all are answered: a slot that falls free is taken at the next step. As every round is the same, memory that
grows after the first one is kept by mistake, or by a method that learns and was not made to forget.

Example: `drive(engine, 200)` makes whole rounds until there were 200 steps; `drive(engine, 800)` goes on likewise.
"""

import random
from dataclasses import replace
from typing import Final

from outrider.engine import Engine
from outrider.sampling import SamplingParams

__all__ = ["NUM_REQUESTS", "drive"]

NUM_REQUESTS: Final = 24
PHRASE, REPEATS, LIMITS = 4, 3, (1, 3, 8, 17, 30)


def drive(engine: Engine, num_steps: int, *, forget: bool = True) -> int:
    """Make at least `num_steps` steps of traffic; every other request samples.

    Args:
        forget: reset the engine after each round, so that what it learnt does not count.

    Returns:
        The most bytes that the proposer's session held after any step.
    """
    end, most = engine.num_steps + num_steps, 0
    while engine.num_steps < end:
        for number in range(NUM_REQUESTS):
            _add(engine, number)
        for _ in engine.run():
            most = max(most, engine.session.num_bytes)
        if forget:
            engine.reset()
    return most


def _add(engine: Engine, number: int) -> None:
    draw = random.Random(number)
    vocab_size = engine.spec.vocab_size
    phrase = [draw.randrange(vocab_size) for _ in range(draw.randint(1, PHRASE))]
    longest = max(1, engine.batch.max_positions // 2)
    prompt = (phrase * draw.randint(1, REPEATS) + phrase[:1])[:longest]
    sampling = SamplingParams(temperature=0.8, seed=number) if number % 2 else SamplingParams()
    engine.add(prompt, replace(sampling, max_tokens=draw.choice(LIMITS), ignore_eos=True))
