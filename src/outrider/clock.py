"""Where the time of a step goes.

`lap(part)` adds the time since the last lap to a part. On a GPU, work is queued: each lap first waits for the device,
so that a part pays for its own kernels. Example: `clock.lap("verify")` after the forward books its seconds as
`verify_s`.
"""

from time import perf_counter
from typing import final

import torch

__all__ = ["Clock"]


@final
class Clock:
    """A stopwatch over the five parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts = dict.fromkeys(("propose", "verify", "accept", "commit", "host"), 0.0)
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = perf_counter()
        self._parts[part] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """`propose_s`, `verify_s`, `accept_s`, `commit_s`, `host_s`."""
        return {f"{part}_s": seconds for part, seconds in self._parts.items()}
