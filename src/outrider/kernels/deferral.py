"""Signals held back while a compiler works.

Numba compiles a kernel, or loads it from its cache, at the first call. A signal handler that raises in between leaves
Numba broken for the rest of the process: `RuntimeError: generator raised StopIteration` at every later kernel. So the
handlers run when the kernel is there.

    @uninterrupted
    @numba.njit
    def kernel(numbers): ...
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any

__all__ = ["signals_deferred", "uninterrupted"]


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold Python's signal handlers back until the context ends. Only the main thread receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in arrived:
            handler = handlers[signal.Signals(one)]
            assert callable(handler)
            handler(one, sys._getframe())


def uninterrupted(dispatcher: Any) -> Any:
    """Let a lazily compiled Numba function compile, or load, without an interruption; calls of it cost nothing more."""
    compile_ = dispatcher.compile

    @wraps(compile_)
    def compile_whole(signature: Any) -> Any:
        with signals_deferred():
            return compile_(signature)

    dispatcher.compile = compile_whole
    return dispatcher
