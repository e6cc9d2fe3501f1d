"""PyTorch's own threads: how many there are, and keeping them away while kernels run.

PyTorch's threads spin for a while after each of its parallel regions and then compete with the kernels' own: a forward
of two rows took half as long again. A decoding loop therefore holds `lone_torch_thread`.

PyTorch has a number for every thread and one that new threads begin with, which is the last that was set anywhere. A
thread that begins while another one decodes would hence have 1 for good, and a target loaded there kernels of one
thread. So while somebody holds it, the number that holds otherwise is kept here.

Worked example: engine A holds it (2 threads, now 1); thread B begins, and PyTorch says 1 there. `torch_threads` says 2
in both, and when B's engine lets go, B has 2.
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
    """How many times over this thread holds it."""

    depth = 0


@final
class _Holders:
    """Threads that hold it, and the number of PyTorch's threads when the first of them began to."""

    def __init__(self) -> None:
        self.usual = 1
        self.forget()

    def forget(self) -> None:
        """Begin anew, as in a forked process, which has none of the other threads."""
        self.lock = threading.Lock()
        self.count = 0


_HELD, _HOLDERS = _Held(), _Holders()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_HOLDERS.forget)


def torch_threads() -> int:
    """PyTorch's number of threads here, as it is while nobody decodes."""
    own = torch.get_num_threads()
    return _HOLDERS.usual if own == 1 and _HOLDERS.count else own


def num_threads() -> int:
    """Threads per kernel: OUTRIDER_NUM_THREADS, or PyTorch's own number."""
    return num_kernel_threads() or torch_threads()


@contextmanager
def lone_torch_thread() -> Iterator[None]:
    """PyTorch works on the calling thread alone while this is held; entering and leaving takes microseconds."""
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
