"""The memory bandwidth of the machine: the ceiling of plain decoding, which reads every weight once per token.

    tokens/s of one request <= bytes_per_s / weight bytes

It is measured by summing a buffer far larger than any cache, with PyTorch's threads and, on a CPU, in the same large
pages as packed weights. The best of several passes counts, since it is a ceiling.
Example: 2 cores at 20 GB/s read the 270 MB of SmolLM2-135M in bf16 at most 74 times a second.
"""

from collections.abc import Callable
from time import perf_counter

import torch

from outrider.kernels.cpu.arena import Arena

__all__ = ["memory_bytes_per_s"]

BUFFER_BYTES = 512 * 2**20


def memory_bytes_per_s(device: torch.device | str = "cpu", *, num_bytes: int = BUFFER_BYTES, passes: int = 7) -> float:
    """Return the bytes per second that a streaming read reaches on `device`."""
    device = torch.device(device)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    count = num_bytes // 4
    on_cpu = device.type == "cpu"
    buffer = Arena().empty((count,), torch.float32) if on_cpu else torch.empty(count, device=device)
    buffer.fill_(1.0)
    seconds = []
    for _ in range(passes):
        wait()
        start = perf_counter()
        buffer.sum()
        wait()
        seconds.append(perf_counter() - start)
    return num_bytes / min(seconds)
