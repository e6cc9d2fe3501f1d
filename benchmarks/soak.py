"""A soak: mixed requests on every method, with `run()` left at random and exceptions thrown in at random.

A timer raises an exception wherever the program happens to be, as Ctrl-C does; the record callback raises now and then;
readers leave `run()` and `stream()` between two events; requests are cancelled. Every text must equal plain decoding's,
token by token, and no event may be lost or given twice. The last line is one JSON document.

    python benchmarks/soak.py                                                  640 requests on a tiny random target
    python benchmarks/soak.py --target smollm2-135m --methods none hybrid --num-requests 64
"""

import json
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import tyro

from outrider import Engine, SamplingParams, Target, load_proposer, load_target
from outrider.proposers import REGISTRY, proposer_class
from outrider.proposers.none import NoProposer
from outrider.testing import tiny_target

TEMPERATURES = (0.0, 0.0, 0.7, 1.0)
SLICE = 16
"""Requests that are in an engine at a time."""


class Thrown(BaseException):
    """The exception that the timer raises; no `except Exception` may swallow it."""


@dataclass(kw_only=True)
class Config:
    """Settings of the soak."""

    target: str = "tiny"
    methods: list[str] = field(default_factory=lambda: [name for name in REGISTRY if name != "oracle"])
    num_requests: int = 640
    max_batch: int = 4
    max_new_tokens: int = 24
    max_prompt: int = 60
    throw_every_s: float = 0.05
    seed: int = 0


@dataclass
class Wanted:
    """One request and the tokens that plain decoding gives it."""

    prompt: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)


class Timer:
    """Raises `Thrown` at random times while it is on."""

    def __init__(self, rng: random.Random, mean_s: float) -> None:
        self.rng, self.mean_s, self.num_thrown, self.on = rng, mean_s, 0, False
        signal.signal(signal.SIGALRM, self._throw)

    def _throw(self, number: int, frame: FrameType | None) -> None:
        if self.on:
            self.on = False
            self.num_thrown += 1
            raise Thrown

    def start(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(1e-4, self.rng.expovariate(1 / self.mean_s)))
        self.on = True

    def stop(self) -> None:
        self.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)


def drawn(rng: random.Random, target: Target, config: Config) -> Wanted:
    """Draw a request: repetitive or random prompt, greedy or sampled, short or long."""
    vocab_size = target.spec.vocab_size
    phrase = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 9))]
    prompt = (phrase * 20)[: rng.randint(1, config.max_prompt)]
    if rng.random() < 0.5:
        prompt = [rng.randrange(vocab_size) for _ in prompt]
    params = SamplingParams(
        temperature=rng.choice(TEMPERATURES),
        top_p=rng.choice([1.0, 0.9]),
        seed=rng.randrange(2**31),
        max_tokens=rng.randint(1, config.max_new_tokens),
        ignore_eos=rng.random() < 0.5,
    )
    return Wanted(prompt, params)


class Soak:
    """One method's share of the requests."""

    def __init__(self, engine: Engine, wanted: list[Wanted], rng: random.Random, timer: Timer) -> None:
        self.engine, self.rng, self.timer = engine, rng, timer
        self.left = list(wanted)
        self.open: dict[int, Wanted] = {}
        self.given: dict[int, list[int]] = {}
        self.counts: Counter[str] = Counter()
        engine.record = self._record

    def _record(self, item: object) -> None:
        if self.rng.random() < 0.01:
            self.counts["callbacks that raised"] += 1
            raise ValueError("a callback's own mistake")

    def run(self) -> None:
        while self.left or self.engine.busy:
            if self.rng.random() < 0.2 and self.left:
                self._stream(self.left.pop())
            self._add()
            try:
                self.timer.start()
                self._read(self.rng.randint(1, 40))
            except (Thrown, ValueError):
                self.counts["runs broken off"] += 1
            finally:
                self.timer.stop()

    def _add(self) -> None:
        while self.left and len(self.open) < SLICE and self.rng.random() < 0.8:
            one = self.left.pop()
            request = self.engine.add(one.prompt, one.params)
            self.open[request], self.given[request] = one, []

    def _read(self, num_events: int) -> None:
        for event in self.engine.run():  # no signal comes between an event and the next line
            self.timer.on = False
            self._take(event)
            num_events -= 1
            if num_events == 0:
                break
            self.timer.on = True
        self.counts["runs left"] += 1

    def _take(self, event: Any) -> None:
        given = self.given[event.request]
        given += event.tokens
        if event.finished is None:
            if self.rng.random() < 0.002:
                self.engine.cancel(event.request)
                one = self.open.pop(event.request)
                self.counts["cancelled"] += 1
                self.counts["wrong"] += given != one.tokens[: len(given)]
            return
        self.counts["answers"] += 1
        self.counts["wrong"] += given != self.open.pop(event.request).tokens

    def _stream(self, one: Wanted) -> None:
        """Read a stream in part or whole, and perhaps break it off."""
        num_events, tokens, ended = self.rng.randint(1, 30), [], False
        try:
            self.timer.start()
            for event in self.engine.stream([one.prompt], one.params):
                tokens += event.tokens  # what is thrown behind this line loses no token
                ended = event.finished is not None
                num_events -= 1
                if num_events == 0:
                    break
        except (Thrown, ValueError):
            self.counts["streams broken off"] += 1
        finally:
            self.timer.stop()
        self.counts["streams"] += 1
        self.counts["wrong"] += tokens != one.tokens if ended else tokens != one.tokens[: len(tokens)]


def main(config: Config) -> int:
    """Run the soak; 0 if every text was right."""
    torch.set_num_threads(1)
    rng = random.Random(config.seed)
    target = tiny_target() if config.target == "tiny" else load_target(config.target)
    tiny = config.target == "tiny"
    plain = Engine(target, NoProposer(), max_batch=config.max_batch)
    timer = Timer(rng, config.throw_every_s)
    total: Counter[str] = Counter()
    for index, method in enumerate(config.methods):
        share = config.num_requests // len(config.methods) + (index < config.num_requests % len(config.methods))
        wanted = [drawn(rng, target, config) for _ in range(share)]
        for one in wanted:
            one.tokens = list(plain.generate([one.prompt], one.params)[0].tokens)
        proposer = proposer_class(method).example(target, 1) if tiny else load_proposer(method, target)
        soak = Soak(Engine(target, proposer, max_batch=config.max_batch), wanted, rng, timer)
        soak.run()
        total += soak.counts
        print(f"{method}: {dict(soak.counts)}", file=sys.stderr, flush=True)
    total["exceptions thrown"] = timer.num_thrown
    print(json.dumps({"schema": "outrider.soak/1", **config.__dict__, **total, "wrong": total["wrong"]}))
    return int(total["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
