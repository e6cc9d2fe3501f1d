"""The last result of `outrider tune` for a target on this machine, kept in the cache for whoever must pick a method.

    ~/.cache/outrider/tuned/<shape, kinds and machine>-<fingerprint of the target>.json

The name holds the identity of measured costs (`outrider.costs.identity`) and the fingerprint of the target's embedding:
other weights of the same shape have a result of their own, and so has another machine, or another number of threads.

Example: after `outrider tune smollm2-135m`, `last_tuned(target).method` is `"eagle3:num_nodes=3"`, or `"none"` where
plain decoding was best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from outrider.costs.identity import identity_of, profile_path
from outrider.env import cache_home
from outrider.errors import RunError
from outrider.formats.store import fingerprint
from outrider.records.codec import dumps, loads
from outrider.records.files import write_text, writing
from outrider.target import Target

__all__ = ["TUNED_SCHEMA", "Tuned", "TunedSpeedup", "keep_tuned", "last_tuned", "tuned_path"]

TUNED_SCHEMA: Final = "outrider.tuned/1"
REMEDY: Final = "free space or set OUTRIDER_CACHE"


@dataclass(frozen=True, kw_only=True)
class TunedSpeedup:
    """A verified speedup over plain decoding at a number of requests at once, with its 95 % interval.

    low, high   ends of the interval; None where one prompt alone was measured
    """

    concurrency: int
    point: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A result: the method to use, or plain decoding, and what was verified of it.

    target        name that the user gave
    fingerprint   hash of the target's embedding
    machine       processor or GPU, for the reader
    method        method with its settings, as on a command line; "none" is plain decoding
    budget        "auto" where drafting should stop by itself, else "fixed"
    off_from      concurrency from which on the method no longer pays; None if it pays at every one that was measured
    date          ISO 8601
    run           directory of the run, absolute
    """

    schema: str = TUNED_SCHEMA
    target: str
    fingerprint: str
    machine: str
    method: str
    budget: Literal["fixed", "auto"]
    temperature: float
    speedups: tuple[TunedSpeedup, ...]
    off_from: int | None
    date: str
    run: str

    def speedup_at(self, concurrency: int) -> TunedSpeedup | None:
        """Return the speedup at the nearest measured concurrency; of two, the larger one."""
        return _nearest(self.speedups, concurrency)


def tuned_path(target: Target) -> Path:
    """Return where the result for a target is kept on this machine."""
    return cache_home() / "tuned" / f"{profile_path(identity_of(target)).stem}-{fingerprint(target)}.json"


def keep_tuned(target: Target, tuned: Tuned) -> Path:
    """Keep a result in place of the last one, and return its file.

    Raises:
        RunError: if the cache cannot be written.
    """
    path = tuned_path(target)
    with writing(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dumps(tuned) + "\n", REMEDY)
    return path


def last_tuned(target: Target) -> Tuned | None:
    """Return the last result for a target on this machine; None if there is none that can be read."""
    try:
        found = loads(Tuned, tuned_path(target).read_text(encoding="utf-8"))
    except (OSError, ValueError, RunError):
        return None
    return found if found.schema == TUNED_SCHEMA and found.method.isprintable() else None


def _nearest(speedups: Sequence[TunedSpeedup], concurrency: int) -> TunedSpeedup | None:
    return min(speedups, key=lambda one: (abs(one.concurrency - concurrency), -one.concurrency), default=None)
