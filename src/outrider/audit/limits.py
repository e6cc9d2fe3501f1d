"""A time limit for code of others: a proposer that never returns becomes an error that says where it was.

The alarm raises an exception inside the running Python code, again every second, so that code which catches exceptions
ends too. It needs the main thread, where signals arrive; elsewhere there is no limit. Compiled code that never returns
to Python cannot be ended.

Example: `with time_limit(5): while True: pass` raises `HungError` after 5 seconds.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Final

__all__ = ["HungError", "time_limit"]

AGAIN_S: Final = 1.0


class HungError(RuntimeError):
    """Code did not return in time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `HungError` in code that runs for longer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise HungError(f"it did not return within {seconds:g} s")

    before, start = signal.signal(signal.SIGALRM, ring), monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # another alarm was set: it still rings when it should
            signal.setitimer(signal.ITIMER_REAL, max(left - (monotonic() - start), 0.001), interval)
