"""A graceful stop: the step in work is finished before Ctrl-C ends the run.

Inside `stopping()` the first SIGINT or SIGTERM only asks to stop; the loop then finishes its step, writes a checkpoint
and leaves. A second one ends the program at once. Elsewhere than in the main thread signals are not touched.

Example: `with stopping() as stop: ...` and, after each step, `if stop.asked: break`.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from outrider.errors import Terminated

__all__ = ["Stop", "stopping"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """A request to stop, and the signal that made it."""

    asked: bool = False
    kind: type[KeyboardInterrupt] = KeyboardInterrupt


@contextmanager
def stopping() -> Iterator[Stop]:
    """Request a stop on the first SIGINT or SIGTERM; raise on the second."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: signal.getsignal(one) for one in SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if stop.asked:
            raise kind
        stop.asked, stop.kind = True, kind

    for one in SIGNALS:
        signal.signal(one, ask)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
