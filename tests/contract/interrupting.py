"""An exception at any call that the engine makes, as a signal, a callback or a lack of memory would raise it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, NamedTuple

from outrider.batch import Batch
from outrider.cache import KVCache
from outrider.engine import Engine
from outrider.loop.guard import Guard

WATCHED: tuple[Callable[..., Any], ...] = (
    Engine.admit,
    Engine._begun,
    Engine._start,
    Engine.step,
    Engine._release,
    Engine._rebuild,
    Engine._drop_cancelled,
    Engine.reset,
    Guard.__enter__,
    Guard.__exit__,
    Batch.advance,
    Batch._emit,
    Batch.place,
    Batch.restore,
    KVCache.commit,
)
"""Functions at whose calls an exception is raised."""


class Interrupted(KeyboardInterrupt):
    """Raised by `interrupted`."""


class Site(NamedTuple):
    """A call in a watched function, and whether the exception comes before it or after."""

    code: CodeType
    instruction: int
    after: bool

    def __str__(self) -> str:
        lines = [line for start, end, line in self.code.co_lines() if start <= self.instruction < end]
        return f"{self.code.co_qualname}, line {lines[0]}, {'after' if self.after else 'before'} the call"


def _site(frame: FrameType, event: str, codes: frozenset[CodeType]) -> Site | None:
    caller = frame if event[0] == "c" and event[1] == "_" else frame.f_back
    if caller is None or caller.f_code not in codes:
        return None
    return Site(caller.f_code, caller.f_lasti, event.endswith("return"))


@contextmanager
def sites(watched: tuple[Callable[..., Any], ...] = WATCHED) -> Iterator[dict[Site, int]]:
    """Count how often each site of these functions is passed."""
    codes, counts = frozenset(function.__code__ for function in watched), {}

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if site := _site(frame, event, codes):
            counts[site] = counts.get(site, 0) + 1

    sys.setprofile(profile)
    try:
        yield counts
    finally:
        sys.setprofile(None)


@contextmanager
def interrupted(site: Site, nth: int = 1) -> Iterator[None]:
    """Raise `Interrupted` when the site is passed for the nth time; it does not leave this context."""
    code, left = frozenset([site.code]), nth

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        if _site(frame, event, code) == site:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise Interrupted

    sys.setprofile(profile)
    try:
        yield
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)
