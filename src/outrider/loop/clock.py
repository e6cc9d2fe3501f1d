"""Where the time of a step goes.

`lap(part)` adds the time since the last lap to a part. Example: `clock.lap("verify")` after the forward books its
seconds as `verify_s`.

On a GPU, work is queued and the host runs ahead. A lap that waited for the device would pay its own kernels, but undo
the overlap that makes a step short. So there a lap only queues an event, and the time between two events is read when
`seconds` is asked for, at the end of a step, when the verdict has been copied back and little is queued. A part then
lasts from when the device passed its first event to when it passed its last: the kernels of the part, and the waiting
for the host that fell between them.

    host      |propose|verify|accept, waits ......................|
    device    e0      [draft kernels] e1 [target kernels    ] e2 [argmax] e3         propose_s = e1 - e0
"""

from itertools import pairwise
from time import perf_counter
from typing import Any, final

import torch

__all__ = ["Clock"]

PARTS = ("propose", "verify", "accept", "commit", "host")


@final
class Clock:
    """A stopwatch over the five parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._laps: list[str] = []
        self._marks: list[Any] = [self._mark()]

    def lap(self, part: str) -> None:
        assert part in PARTS, f"{part!r} is not a part of a step"
        self._laps.append(part)
        self._marks.append(self._mark())

    def _mark(self) -> Any:
        if not self._is_cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """`propose_s`, `verify_s`, `accept_s`, `commit_s`, `host_s`. On a GPU, waits for the last lap."""
        if self._is_cuda:
            self._marks[-1].synchronize()
        parts = dict.fromkeys(PARTS, 0.0)
        for part, (start, end) in zip(self._laps, pairwise(self._marks), strict=True):
            parts[part] += start.elapsed_time(end) / 1e3 if self._is_cuda else end - start
        return {f"{part}_s": seconds for part, seconds in parts.items()}
