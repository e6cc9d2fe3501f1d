"""A soak: thousands of mixed requests through one engine, which is disturbed all the time.

Requests are greedy or sampled, with all processors, forced tokens, stops, limits and log-probabilities; prompts share
beginnings and are read in chunks. A timer raises an exception anywhere, as Ctrl-C does, or
cancels a request in the middle of a step; the record callback raises; readers leave between two events.

Every answer must equal plain decoding's of the same request alone, without forced tokens: tokens, text, reason to end,
log-probabilities. What a cancelled request had given must be the beginning of that. Memory is measured whenever all
requests of a group are answered; the first fifth of the groups is warm-up. Flat means: from the first to the last
quarter of the rest median memory grows by less than 1 %, and tensors, threads and files by none.

    python benchmarks/soak.py                                              5,000 requests, hybrid, adaptive budget
    python benchmarks/soak.py --methods none ngram suffix draft_model eagle3 pard medusa mtp hybrid --num-requests 150
    python benchmarks/soak.py --target smollm2-135m --methods eagle3 --num-requests 64

The last line is one JSON document; exit status 1 if a text was wrong, an event lost or memory grew.
"""

import gc
import json
import math
import random
import signal
import statistics
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import psutil
import torch
import tyro

from outrider import Completion, Engine, SamplingParams, StructuredOutputs, Target, load_proposer, load_target
from outrider.batch import Batch
from outrider.proposer import Proposer
from outrider.proposers import proposer_class
from outrider.proposers.hybrid import HybridConfig, HybridProposer
from outrider.proposers.none import NoProposer
from outrider.requests.events import Event
from outrider.requests.logprobs import TokenLogprob
from outrider.testing.directory import write_tiny_model

WORDS = ("abc", "xyz", "one two", "1 2 3", "again", "the end", "the cat sat on the mat", "a b a b a b")
PERSON = {"type": "object", "properties": {"name": {"enum": ["a", "bc"]}, "old": {"type": "boolean"}}}
FORMS = (
    StructuredOutputs(choice=["yes", "no", "perhaps not"]),
    StructuredOutputs(regex=r"[a-c]{3,9}( [0-9]+)*"),
    StructuredOutputs(json=PERSON | {"required": ["name", "old"]}, disable_any_whitespace=True),
    StructuredOutputs(json_object=True),
)
GROUP = 100
"""Requests after whose answers memory is measured."""
OPEN = 16
"""Requests that are in an engine at a time."""
GROWTH, SLACK = 0.01, 0
"""Growth of resident memory that counts as flat, and that of tensors, threads and files."""


class Thrown(BaseException):
    """The exception that the timer raises; no `except Exception` may swallow it."""


@dataclass(kw_only=True)
class Config:
    """Settings of the soak."""

    target: str = "tiny"
    methods: list[str] = field(default_factory=lambda: ["hybrid"])
    num_requests: int = 5000
    budget: str = "auto"
    max_batch: int = 4
    max_new_tokens: int = 16
    disturb_every_s: float = 0.05
    seed: int = 0


@dataclass
class Wanted:
    """One request, and plain decoding's answer to it."""

    prompt: list[int]
    params: SamplingParams
    answer: Completion | None = None
    events: list[Event] = field(default_factory=list)

    def is_right(self, *, whole: bool) -> bool:
        """Return whether the events are that answer, or, of a request that was cancelled, its beginning."""
        assert self.answer is not None
        tokens = [token for event in self.events for token in event.tokens]
        text = "".join(event.text for event in self.events)
        if not whole:
            return tokens == list(self.answer.tokens[: len(tokens)]) and self.answer.text.startswith(text)
        logprobs = [one for event in self.events for one in event.logprobs]
        same = all(map(_is_close, logprobs, self.answer.logprobs)) and len(logprobs) == len(self.answer.logprobs)
        ended = self.events[-1].finished, self.events[-1].error
        return (
            tokens == list(self.answer.tokens)
            and text == self.answer.text
            and ended == (self.answer.finished, self.answer.error)
            and same
        )


def _is_close(one: TokenLogprob, other: TokenLogprob) -> bool:
    is_same = (one.token, one.rank) == (other.token, other.rank)
    return is_same and math.isclose(one.logprob, other.logprob, rel_tol=1e-9)


class Stop:
    """Ctrl-C: the soak ends after the group at hand, and says what it has found."""

    asked = False

    @classmethod
    def ask(cls, number: int, frame: FrameType | None) -> None:
        cls.asked = True


class Timer:
    """Disturbs at random times of this process's own clock while it is on: raises `Thrown`, or calls `cancel`."""

    def __init__(self, rng: random.Random, mean_s: float) -> None:
        self.rng, self.mean_s, self.num_thrown, self.is_on = rng, mean_s, 0, False
        self.cancel: Any = None
        signal.signal(signal.SIGPROF, self._disturb)

    def _disturb(self, number: int, frame: FrameType | None) -> None:
        if not self.is_on:
            return
        if self.cancel is not None and self.rng.random() < 0.3:
            self.cancel()
            self.start()
            return
        self.is_on = False
        self.num_thrown += 1
        raise Thrown

    def start(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, max(1e-4, self.rng.expovariate(1 / self.mean_s)))
        self.is_on = True

    def stop(self) -> None:
        self.is_on = False
        signal.setitimer(signal.ITIMER_PROF, 0)


class Traffic:
    """Draws requests; prompts begin with one of a few texts."""

    def __init__(self, rng: random.Random, target: Target, config: Config) -> None:
        self.rng, self.config, self.tokenizer = rng, config, target.tokenizer
        self.vocab_size = target.spec.vocab_size
        self.beginnings = [self._words(rng.randint(4, 12)) for _ in range(6)]
        self.plain = Engine(target, NoProposer(), max_len=512, prefix_cache_bytes=0)

    def _words(self, count: int) -> list[int]:
        return list(self.tokenizer.encode(" ".join(self.rng.choices(WORDS, k=count)), add_special_tokens=False))

    def draw(self) -> Wanted:
        """Draw a request, and let plain decoding answer it."""
        rng, most = self.rng, self.config.max_new_tokens
        prompt = (rng.choice(self.beginnings) if rng.random() < 0.6 else []) + self._words(rng.randint(1, 6))
        settings: dict[str, Any] = {
            "temperature": rng.choice((0.0, 0.0, 0.7, 1.0)),
            "top_p": rng.choice((1.0, 0.9)),
            "top_k": rng.choice((0, 0, 20)),
            "min_p": rng.choice((0.0, 0.0, 0.05)),
            "seed": rng.randrange(2**31),
            "max_tokens": rng.randint(1, most),
            "ignore_eos": rng.random() < 0.5,
        }
        options: dict[str, Any] = {
            "presence_penalty": rng.choice((-1.0, 0.5)),
            "frequency_penalty": rng.choice((0.4, 1.5)),
            "repetition_penalty": rng.choice((0.8, 1.3)),
            "logit_bias": {rng.randrange(self.vocab_size): rng.choice((-100.0, 3.0, 8.0)) for _ in range(3)},
            "bad_words": rng.choices(("a", "e", "th", "1 2"), k=2),
            "stop": rng.choices(("a", "q", "th", "zz", "\n"), k=2),
            "stop_token_ids": [rng.randrange(self.vocab_size)],
            "min_tokens": rng.randint(0, settings["max_tokens"]),
            "logprobs": rng.choice((0, 3)),
            "structured_outputs": rng.choice(FORMS),
        }
        settings |= {name: value for name, value in options.items() if rng.random() < 0.2}
        wanted = Wanted(prompt, SamplingParams(**settings))
        with patch.object(Batch, "forced", lambda batch, most: {}):
            [wanted.answer] = self.plain.generate([prompt], wanted.params)
        return wanted


class Soak:
    """One engine, its requests and what was counted."""

    def __init__(self, engine: Engine, traffic: Traffic, rng: random.Random, timer: Timer) -> None:
        self.engine, self.traffic, self.rng, self.timer = engine, traffic, rng, timer
        self.left: list[Wanted] = []
        self.open: dict[int, Wanted] = {}
        self.counts: Counter[str] = Counter()
        self.memory: list[dict[str, int]] = []
        engine.record = self._record

    def _record(self, record: object) -> None:
        self.counts["records"] += 1
        if self.timer.is_on and self.rng.random() < 0.01:
            self.counts["callbacks that raised"] += 1
            raise ValueError("a callback's own mistake")

    def run(self, num_requests: int) -> None:
        """Answer so many requests, and measure memory after every group."""
        for start in range(0, num_requests, GROUP):
            if Stop.asked:
                break
            self.left = [self.traffic.draw() for _ in range(min(GROUP, num_requests - start))]
            for one in self.left:
                self.counts["requests"] += 1
                self.counts["with processors"] += one.params != _without_processors(one.params)
            while self.left or self.open:
                self._advance()
            self._read(-1)  # what was cancelled in the last step is dropped before the next
            assert not self.engine.busy, "a request is left over"
            assert not self.engine.outboxes._of, "an outbox is left over"
            self.memory.append(measured(self.engine))
            if start % (5 * GROUP) == 0:
                print(f"{self.counts['requests']} of {num_requests} requests: {dict(self.counts)}", file=sys.stderr)

    def _advance(self) -> None:
        if self.rng.random() < 0.2 and self.left:
            self._stream(self.left.pop())
        while self.left and len(self.open) < OPEN and self.rng.random() < 0.8:
            one = self.left.pop()
            self.open[self.engine.add(one.prompt, one.params)] = one
        self.timer.cancel = self._cancel
        try:
            self.timer.start()
            self._read(self.rng.randint(1, 40))
        except (Thrown, ValueError):
            self.counts["runs broken off"] += 1
        finally:
            self.timer.stop()
            self.timer.cancel = None

    def _cancel(self) -> None:
        """End a request in a handler of signals, anywhere within a step."""
        if not self.open:
            return
        request = self.rng.choice(list(self.open))
        self.engine.cancel(request)
        self.counts["cancelled in a step"] += 1
        self._judge(self.open.pop(request), whole=False)

    def _read(self, num_events: int) -> None:
        for event in self.engine.run():  # no signal comes between an event and the next line
            self.timer.is_on = False
            self._take(event)
            num_events -= 1
            if num_events == 0:
                break
            self.timer.is_on = num_events > 0
        self.counts["runs read"] += 1

    def _take(self, event: Event) -> None:
        one = self.open.get(event.request)
        if one is None:  # cancelled by a signal while its event was on the way
            self.counts["events after a cancellation"] += 1
            return
        one.events.append(event)
        if event.finished is not None:
            self.counts["answers"] += 1
            self._judge(self.open.pop(event.request), whole=True)
        elif self.rng.random() < 0.002:
            self.engine.cancel(event.request)
            self.counts["cancelled between events"] += 1
            self._judge(self.open.pop(event.request), whole=False)

    def _stream(self, one: Wanted) -> None:
        """Read a stream in part or whole, and perhaps break it off."""
        num_events = self.rng.randint(1, 30)
        try:
            self.timer.start()
            for event in self.engine.stream([one.prompt], one.params):
                one.events.append(event)  # what is thrown behind this line loses no token
                num_events -= 1
                if num_events == 0:
                    self.timer.is_on = False
                    break
        except (Thrown, ValueError):
            self.counts["streams broken off"] += 1
        finally:
            self.timer.stop()
        self.counts["streams"] += 1
        self._judge(one, whole=bool(one.events) and one.events[-1].finished is not None)

    def _judge(self, one: Wanted, *, whole: bool) -> None:
        if not one.is_right(whole=whole):
            self.counts["wrong"] += 1
            print(f"wrong: {one.params}: {one.events}, not {one.answer}", file=sys.stderr, flush=True)


def _without_processors(params: SamplingParams) -> SamplingParams:
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "ignore_eos", "stop", "stop_token_ids")
    return SamplingParams(**{name: getattr(params, name) for name in (*names, "logprobs")})


def measured(engine: Engine) -> dict[str, int]:
    """Return what is held while no request is open."""
    gc.collect()
    process = psutil.Process()
    kept = sum(len(prefix.kept.caches) if prefix.kept else 0 for prefix in engine.prefixes._held.prefixes.values())
    tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
    return {
        "rss": process.memory_info().rss,
        "tensors": tensors,
        "prefixes": len(engine.prefixes),
        "prefix_bytes": engine.prefixes.num_bytes,
        "prefix_caches": kept,
        "session_bytes": engine.session.num_bytes,
        "threads": threading.active_count(),
        "files": process.num_fds(),
    }


def grown(memory: list[dict[str, int]]) -> dict[str, Any]:
    """Return the medians of the first and the last quarter behind the warm-up, by name."""
    rest = memory[len(memory) // 5 :]
    quarter = max(1, len(rest) // 4)
    return {
        name: [statistics.median(one[name] for one in part) for part in (rest[:quarter], rest[-quarter:])]
        for name in (memory[0] if memory else ())
    }


def proposer_of(method: str, target: Target, is_tiny: bool) -> Proposer:
    """Return a proposer; on a tiny target one with random weights, and with a memory that is soon full."""
    if not is_tiny:
        return load_proposer(method, target)
    if method == "hybrid":
        config = HybridConfig(drafter="eagle3", lookup_nodes=5, max_cached_requests=100)
        return HybridProposer(proposer_class("eagle3").example(target, 14), config)
    return proposer_class(method).example(target, 2)


def main(config: Config) -> int:
    """Run the soak; 0 if every text was right and memory was flat."""
    torch.set_num_threads(1)
    rng = random.Random(config.seed)
    is_tiny = config.target == "tiny"
    with tempfile.TemporaryDirectory() as scratch:
        name = str(write_tiny_model(Path(scratch) / "model")) if is_tiny else config.target
        target = load_target(name, dtype="float64" if is_tiny else "bfloat16")
    gc.collect()
    gc.freeze()  # what is loaded need not be looked through again and again
    timer, bad, found = Timer(rng, config.disturb_every_s), 0, {}
    signal.signal(signal.SIGINT, Stop.ask)
    for method in config.methods:
        engine = Engine(
            target,
            proposer_of(method, target, is_tiny),
            max_batch=config.max_batch,
            max_len=512,
            prefix_cache_bytes=2**20 if is_tiny else 2**28,
            prefill_chunk=24,
            budget=config.budget,  # type: ignore[arg-type]
        )
        soak = Soak(engine, Traffic(rng, target, config), rng, timer)
        soak.run(config.num_requests)
        memory = grown(soak.memory)
        rss = memory["rss"]
        is_flat = rss[1] <= rss[0] * (1 + GROWTH) and all(
            memory[name][1] <= memory[name][0] + SLACK for name in ("threads", "files")
        )
        found[method] = {"steps": engine.num_steps, **soak.counts, "wrong": soak.counts["wrong"], "memory": memory}
        bad += soak.counts["wrong"] > 0 or (len(soak.memory) >= 20 and not is_flat)
        print(f"{method}: {found[method]}", file=sys.stderr, flush=True)
    line = {"schema": "outrider.soak/2", **asdict(config), "exceptions thrown": timer.num_thrown, "found": found}
    print(json.dumps(line))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
