"""A command ends when it is asked to: SIGTERM is obeyed as Ctrl-C is, with the same clean-up, and exit status 143.

Python turns SIGINT into KeyboardInterrupt; inside `interruptible` SIGTERM raises its subclass `Terminated`. What saves
work on Ctrl-C thus saves it on both. A second SIGTERM does not disturb the clean-up; a second Ctrl-C does.
While a module is imported the signal waits: libraries such as NumPy turn an exception there into another one.

Example: `with resumable(lambda: "; finished units are in runs/x"): ...` lets the sentence of an interruption end with
these words.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from outrider.errors import Terminated

__all__ = ["interruptible", "resumable"]

SECONDS_TO_IMPORT = 0.05
"""Until a signal that came during an import comes again."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and KeyboardInterrupt on SIGINT, in the main thread; others' handlers are kept."""
    ours: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
        ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in ours:
        signal.signal(number, _obey)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


@contextmanager
def resumable(place: Callable[[], str]) -> Iterator[None]:
    """Let the sentence of an interruption say where the work is and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{word(stop)}{place()}") from None


def word(stop: KeyboardInterrupt) -> str:
    """Return "terminated" or "interrupted"."""
    return "terminated" if isinstance(stop, Terminated) else "interrupted"


def _obey(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        again = threading.Timer(SECONDS_TO_IMPORT, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
