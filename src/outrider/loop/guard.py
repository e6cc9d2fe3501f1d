"""Exclusive work that an exception may end anywhere.

An engine changes several things in a step: the batch, the cache, the proposer's session. An exception (a signal, a
callback, a proposer, a lack of memory) can leave them in disagreement, and a second thread can see them so. A `Guard`
surrounds such work:

- While one call works, another one is refused with an `EngineBusyError`.
- Work that did not reach its end leaves the guard unsound. Before the next work, `repair` is called.

A signal can interrupt the guard itself, between any two calls. So no lock must be released: the guard knows the holder
by its stack frame, and a frame that no thread executes any more holds nothing.

    with guard:      # repaired first, if the last work did not end
        ...          # an exception here: unsound
"""

import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NamedTuple, final

from outrider.errors import EngineBusyError

__all__ = ["Guard"]


class _Holder(NamedTuple):
    thread: int
    frame: FrameType

    @property
    def name(self) -> str:
        return next((one.name for one in threading.enumerate() if one.ident == self.thread), "of another library")

    @property
    def works(self) -> bool:
        """True while its frame is on the stack of its thread."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


@final
class Guard:
    """A context manager around work on one engine.

    Args:
        repair: function that makes everything consistent again; called with the guard held.
    """

    def __init__(self, repair: Callable[[], None]) -> None:
        self.sound = True
        self._repair = repair
        self._holders: dict[str, _Holder] = {}

    @property
    def held(self) -> bool:
        """True while a call works."""
        holder = self._holders.get("now")
        return holder is not None and holder.works

    def __enter__(self) -> None:
        me = _Holder(threading.get_ident(), sys._getframe(1))
        holder = self._holders.setdefault("now", me)  # one operation, so two threads cannot both succeed
        if holder is not me:
            if holder.works:
                raise EngineBusyError(_refusal(holder, me))
            self._holders["now"] = me
        try:
            if not self.sound:
                self._repair()
        except BaseException:
            self._holders.clear()
            raise
        self.sound = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sound = kind is None
        self._holders.clear()


def _refusal(holder: _Holder, me: _Holder) -> str:
    if holder.thread == me.thread:
        return "this engine is in the middle of a step; call it between two events, not from what a step calls"
    return (
        f"this engine is working in thread '{holder.name}'; use one engine from one thread at a time, and open another "
        "engine on the same target for another thread: they share the weights"
    )
