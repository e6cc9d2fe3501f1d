"""How fast the machine reads memory: the ceiling of plain decoding, which reads every weight once per token.

    tokens/s of one request <= bytes_per_s / weight bytes

Measured by summing a buffer far larger than any cache, with PyTorch's threads; the median of several passes.
Example: 2 cores at 20 GB/s read the 270 MB of SmolLM2-135M in bf16 at most 74 times a second.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

__all__ = ["memory_bytes_per_s"]

BUFFER_BYTES = 512 * 2**20


def memory_bytes_per_s(device: torch.device | str = "cpu", *, num_bytes: int = BUFFER_BYTES, passes: int = 7) -> float:
    """Bytes per second that a streaming read reaches on `device`."""
    device = torch.device(device)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    seconds = []
    for _ in range(passes):
        wait()
        start = perf_counter()
        buffer.sum()
        wait()
        seconds.append(perf_counter() - start)
    return num_bytes / median(seconds)
