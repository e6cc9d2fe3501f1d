"""Run one kind of damaged input over many seeds, in a process that may die."""

import os
import random
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[2]
START_S = 300.0
"""Seconds that a process may take until its first input: imports, and building what the kind needs."""
READY = "ready"


@dataclass(frozen=True)
class Failure:
    """An input that ended in anything but an answer or a sentence."""

    seed: int
    reason: str


@dataclass
class Tally:
    """Counts of one kind."""

    kind: str
    accepted: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.accepted + self.refused + len(self.failures)

    def line(self) -> str:
        return f"{self.kind:24} {self.accepted:6} taken {self.refused:6} refused {len(self.failures):4} failures"

    def add(self, seed: int, outcome: str) -> None:
        """Count one line of a child: "taken", "refused", or the reason of a failure."""
        if outcome == "taken":
            self.accepted += 1
        elif outcome == "refused":
            self.refused += 1
        else:
            self.failures.append(Failure(seed, outcome))


def run_kind(kind: str, seeds: Sequence[int], timeout: float) -> Tally:
    """Run every seed and count the outcomes."""
    tally, left = Tally(kind), list(seeds)
    while left:
        done = 0
        for seed, outcome in zip(left, _outcomes(kind, left, timeout), strict=False):
            tally.add(seed, outcome)
            done += 1
        if done == 0:
            raise RuntimeError(f"the process of kind {kind} ended before its first input")
        left = left[done:]
    return tally


def _outcomes(kind: str, seeds: Sequence[int], timeout: float) -> Iterator[str]:
    """Yield one outcome per seed, in order; if the process dies or hangs, the outcome says so and is the last."""
    command = [sys.executable, "-m", "benchmarks.fuzz.child", kind, str(seeds[0]), str(len(seeds))]
    # Python's own salt is fixed, so that a seed gives the same input in every process.
    env = os.environ | {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        reader = _Lines(child.stdout.fileno())
        try:
            if reader.next(START_S) != READY:
                return
            for _ in seeds:
                line = reader.next(timeout)
                if line is None:
                    child.kill()
                    yield f"no answer within {timeout:.0f} s" if reader.is_open else f"died: status {child.wait()}"
                    return
                yield line
        finally:
            child.kill()


class _Lines:
    """Lines from a descriptor, read with a time limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(descriptor, selectors.EVENT_READ)
        self.is_open = True

    def next(self, timeout: float) -> str | None:
        """Return the next line; None at the end of the stream and when the limit has passed."""
        end = monotonic() + timeout
        while b"\n" not in self._data:
            if not self._selector.select(max(0.0, end - monotonic())):
                return None
            chunk = os.read(self._descriptor, 65536)
            if not chunk:
                self.is_open = False
                return None
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()


def rng_of(kind: str, seed: int) -> random.Random:
    """Return the random numbers of one input."""
    return random.Random(f"{kind}/{seed}")
