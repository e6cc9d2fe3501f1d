"""Engines on one target in several threads, for so many seconds: `python tests/unit/soak_threads.py SEED SECONDS`.

Every method decodes in two or three threads at once, on targets of one process: native ones and one of `transformers`.
Some threads share a proposer, some load a target or open engines meanwhile. Each text must be the one that the same
engine gives alone. The last line of the output says how many texts were compared; a wrong one ends with status 1.
"""

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from outrider import Engine, SamplingParams, load_target
from outrider.proposer import Proposer
from outrider.proposers import REGISTRY, proposer_class
from outrider.target import Target
from outrider.targets.native import NativeTarget
from outrider.testing.tiny import tiny_target

Prompts = list[list[int]]
LEAST = 3
ANYWHERE = ["none", "ngram", "suffix", "eagle3", "medusa", "mtp"]
"""Methods that need no target on the native decoder."""
SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}


def model_directory(root: Path) -> Path:
    """A tiny Llama of random weights, as files."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, **HEADS, initializer_range=0.5, bos_token_id=None, eos_token_id=30)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(root)
    return root


def texts(
    target: Target, proposer: Proposer, prompts: Prompts, sampling: SamplingParams, batch: int
) -> list[list[int]]:
    """The answers of one new engine, which takes the prompts in small groups."""
    engine = Engine(target, proposer, max_batch=batch, max_len=48 + 12 * batch)
    found: list[list[int]] = []
    for first in range(0, len(prompts), 2 * batch):
        some = prompts[first : first + 2 * batch]
        done = engine.generate(some, replace(sampling, max_tokens=14, ignore_eos=True))
        found += [list(one.tokens) for one in done]
    return found


class Round:
    """One draw: a target, two or three threads with their proposers, and what each should write."""

    def __init__(self, draw: random.Random, target: Target, directory: Path) -> None:
        self.target = target
        self.directory = directory
        known = list(REGISTRY) if isinstance(target, NativeTarget) else ANYWHERE
        self.names = [draw.choice(known) for _ in range(draw.choice((2, 3)))]
        proposers = [proposer_class(name).example(target, draw.randrange(12)) for name in self.names]
        if draw.random() < 0.4:
            proposers = [proposers[0]] * len(proposers)
        self.loads = draw.choice((("native", "hf"), ()))
        self.work: list[Callable[[], list[list[int]]]] = []
        for proposer in proposers:
            batch = draw.choice((1, 2, 3))
            prompts = [[draw.randrange(30) for _ in range(draw.randrange(1, 30))] for _ in range(6)]
            sampling = SamplingParams(temperature=draw.choice((0.0, 1.0)), seed=draw.randrange(99))
            self.work.append(lambda p=proposer, q=prompts, s=sampling, b=batch: texts(self.target, p, q, s, b))

    def run(self) -> int:
        """How many texts were compared.

        Raises:
            AssertionError: if one of them differs, or a thread failed.
        """
        want = [work() for work in self.work]
        found: dict[int, object] = {}

        def decode(place: int) -> None:
            try:
                found[place] = self.work[place]()
            except BaseException as error:
                found[place] = error

        def load(backend: str) -> None:
            for dtype in ("bfloat16", "float32"):
                load_target(str(self.directory), dtype=dtype, device="cpu", backend=backend)  # type: ignore[arg-type]

        threads = [threading.Thread(target=decode, args=(place,)) for place in range(len(want))]
        threads += [threading.Thread(target=load, args=(backend,)) for backend in self.loads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for place, texts in enumerate(want):
            assert found[place] == texts, f"{self.names} on {self.target.spec.name}, thread {place}: {found[place]}"
        return sum(map(len, want))


def main(seed: int, seconds: float) -> None:
    torch.set_num_threads(1)  # tiny tensors gain nothing from more
    draw, start, count = random.Random(seed), time.monotonic(), 0
    with TemporaryDirectory() as root:
        directory = model_directory(Path(root))
        for number in itertools.count():
            if number >= LEAST and time.monotonic() - start > seconds:
                break
            target: Target = tiny_target(draw.randrange(4), dtype=draw.choice((torch.float32, torch.bfloat16)))
            if number % LEAST == 2:
                backend = draw.choice(("native", "hf"))
                target = load_target(str(directory), dtype="float32", device="cpu", backend=backend)
            count += Round(draw, target, directory).run()
    print(count)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
