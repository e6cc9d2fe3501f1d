"""Memory for packed weights, in large pages where the system offers them.

A forward of one row reads every weight once, front to back. With 4 KiB pages that is 65,000 address translations for
268 MB; with 2 MiB pages it is 128. A weight of one layer is smaller than a large page, so weights are placed side by
side in chunks that are mapped as a whole. A chunk is freed with its last tensor.

Worked example: two weights of 700 KB share one 64 MiB chunk, the second 64-byte aligned behind the first.
"""

import math
import mmap
import sys
import threading

import torch
from torch import Tensor

__all__ = ["Arena"]

CHUNK_BYTES = 64 * 2**20
ALIGNMENT = 64  # one cache line


class Arena:
    """Hands out uninitialised tensors from large chunks; a chunk is freed with its last tensor."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised contiguous tensor, 64-byte aligned."""
        num_bytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            if self._used + num_bytes > len(self._chunk):
                self._chunk, self._used = _mapped(max(num_bytes, self._chunk_bytes)), 0
            flat = self._chunk[self._used : self._used + num_bytes]
            self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return flat.view(dtype).view(shape)


def _mapped(num_bytes: int) -> Tensor:
    """Map fresh memory, in large pages if the system has them."""
    if sys.platform != "linux":
        return torch.empty(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
