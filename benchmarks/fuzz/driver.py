"""Run one kind of damaged input over many seeds, in processes that may die, and measure their time and memory."""

import os
import random
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

ROOT = Path(__file__).parents[2]
START_S = 900.0
"""Seconds that a process may take until its first input: imports, and building what the kind needs."""
READY = "ready"
MOST_BYTES = 2 * 2**30
"""Resident memory that a process may take, the libraries and the tiny models included (some 0.7 GiB)."""
MOST_DATA = 10 * 2**30
"""Memory that a process may ask for; beyond it every allocation fails, so that this machine is not brought down."""
TOO_LARGE = "peak memory"


@dataclass(frozen=True)
class Failure:
    """An input that ended in anything but an answer or a sentence."""

    seed: int
    reason: str


@dataclass
class Tally:
    """Counts of one kind.

    seconds      wall time, start of the processes included
    peak_bytes   most resident memory of a process
    """

    kind: str
    accepted: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def count(self) -> int:
        return self.accepted + self.refused + len(self.failures)

    def line(self) -> str:
        counts = f"{self.accepted:6} taken {self.refused:6} refused {len(self.failures):4} failures"
        return f"{self.kind:18} {counts} {self.seconds:7.0f} s {self.peak_bytes / 2**20:6.0f} MiB"

    def add(self, seed: int, outcome: str) -> None:
        """Count one line of a child: "taken", "refused", or the reason of a failure."""
        if outcome == "taken":
            self.accepted += 1
        elif outcome == "refused":
            self.refused += 1
        else:
            self.failures.append(Failure(seed, outcome))

    def join(self, other: "Tally") -> None:
        """Add the counts of a part."""
        self.accepted += other.accepted
        self.refused += other.refused
        self.failures += other.failures
        self.seconds += other.seconds
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def run_kind(kind: str, seeds: Sequence[int], timeout: float) -> Tally:
    """Run every seed and count the outcomes."""
    tally, left, start = Tally(kind), list(seeds), monotonic()
    while left:
        done = 0
        for seed, outcome in zip(left, _outcomes(tally, left, timeout), strict=False):
            tally.add(seed, outcome)
            done += 1
        if done == 0:
            raise RuntimeError(f"the process of kind {kind} ended before its first input")
        left = left[done:]
    tally.seconds = monotonic() - start
    return tally


def _outcomes(tally: Tally, seeds: Sequence[int], timeout: float) -> Iterator[str]:
    """Yield one outcome per seed, in order; if the process dies or hangs, the outcome says so and is the last."""
    command = [sys.executable, "-m", "benchmarks.fuzz.child", tally.kind, str(seeds[0]), str(len(seeds))]
    # Python's own salt is fixed, so that a seed gives the same input in every process.
    env = os.environ | {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # what inputs leave in a process that dies goes with this directory
    with TemporaryDirectory(prefix="fuzz-") as scratch:
        child = subprocess.Popen(
            command, cwd=ROOT, env=env | {"TMPDIR": scratch}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        reader = _Lines(child.stdout.fileno())
        try:
            if reader.next(START_S) != READY:
                return
            for _ in seeds:
                line = reader.next(timeout)
                if line is None:
                    is_hung = reader.is_open
                    status = _ended(child, tally)
                    yield f"no answer within {timeout:.0f} s" if is_hung else f"died: status {status}"
                    return
                yield line
                if line.startswith(TOO_LARGE):
                    return
        finally:
            _ended(child, tally)
            child.stdout.close()


def _ended(child: "subprocess.Popen[bytes]", tally: Tally) -> int:
    """End a process, note its memory, and return its status."""
    if child.returncode is None:
        os.kill(
            child.pid, signal.SIGKILL
        )  # `child.kill` would fetch the status of one that has ended, and not its memory
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        tally.peak_bytes = max(tally.peak_bytes, usage.ru_maxrss * 1024)
    return child.returncode


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
