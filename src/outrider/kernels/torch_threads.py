"""PyTorch's own threads: their number, and a way to keep them idle while kernels run.

PyTorch's threads spin for a while after each of its parallel regions and then compete with the kernels' own: a forward
of two rows took half as long again. A decoding loop therefore holds `lone_torch_thread`.

PyTorch keeps one number per thread, and new threads start with the number that was set last in any thread. A thread
that starts while another one decodes would have 1 for good, and a target loaded there would get kernels of one thread.
So while any thread holds the context, the usual number is kept here.

Worked example: engine A holds it (2 threads, now 1); thread B starts, and PyTorch reports 1 there. `torch_threads`
returns 2 in both, and when B's engine releases it, B has 2.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch

from outrider.env import num_kernel_threads

__all__ = ["lone_torch_thread", "num_threads", "torch_threads"]


@final
class _Held(threading.local):
    """Number of times this thread holds the context."""

    depth = 0


@final
class _Holders:
    """Threads that hold the context, and the number of PyTorch's threads before the first of them."""

    def __init__(self) -> None:
        self.usual = 1
        self.forget()

    def forget(self) -> None:
        """Start anew, as in a forked process, which has none of the other threads."""
        self.lock = threading.Lock()
        self.count = 0


_HELD, _HOLDERS = _Held(), _Holders()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_HOLDERS.forget)


def torch_threads() -> int:
    """Return PyTorch's number of threads outside of decoding."""
    own = torch.get_num_threads()
    return _HOLDERS.usual if own == 1 and _HOLDERS.count else own


def num_threads() -> int:
    """Return the threads per kernel: OUTRIDER_NUM_THREADS, or PyTorch's own number."""
    return num_kernel_threads() or torch_threads()


@contextmanager
def lone_torch_thread() -> Iterator[None]:
    """Limit PyTorch to the calling thread while this is held; entering and leaving takes microseconds."""
    if _HELD.depth:
        yield
        return
    with _HOLDERS.lock:
        before = torch_threads()
        if not _HOLDERS.count:
            _HOLDERS.usual = before
        _HOLDERS.count += 1
    _HELD.depth = 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _HELD.depth = 0
        with _HOLDERS.lock:
            _HOLDERS.count = max(0, _HOLDERS.count - 1)
