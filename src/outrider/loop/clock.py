"""A stopwatch that shows where the time of a step goes.

`with clock(part):` books the time since the last mark under a part, and sets a mark. Example: a forward inside
`with clock("verify"):` books its seconds as `verify_s`.

On a GPU, kernels are queued and the host runs ahead. A mark that waited for the device would measure its own kernels,
but undo the overlap that makes a step short. So there a mark only queues an event, and the time between two events is
read in `seconds`, at the end of a step, when the accepted path has been copied back and little is queued. A part then
lasts from when the device passed its first event to when it passed its last: the kernels of the part, and the waiting
for the host that fell between them.

    host      |propose|verify|accept, waits ......................|
    device    e0      [draft kernels] e1 [target kernels    ] e2 [argmax] e3         propose_s = e1 - e0
"""

from itertools import pairwise
from time import perf_counter
from types import TracebackType
from typing import Any, Self, final

import torch

__all__ = ["Clock"]

PARTS = ("propose", "verify", "accept", "commit", "host")


@final
class Clock:
    """A stopwatch over the five parts of a step, which may come in any order and more than once."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._parts: list[str] = []
        self._marks: list[Any] = [self._mark()]

    def __call__(self, part: str) -> Self:
        """Name the part that the following block belongs to."""
        assert part in PARTS, f"{part!r} is not a part of a step"
        self._parts.append(part)
        return self

    def __enter__(self) -> None:
        """Do nothing: the block began at the last mark."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # a step that failed has no times
            self._marks.append(self._mark())

    def _mark(self) -> Any:
        if not self._is_cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Return `propose_s`, `verify_s`, `accept_s`, `commit_s` and `host_s` of the blocks that have ended.

        On a GPU this waits until the device has passed the last mark.
        """
        if self._is_cuda:
            self._marks[-1].synchronize()
        parts = dict.fromkeys(PARTS, 0.0)
        for part, (start, end) in zip(self._parts, pairwise(self._marks), strict=False):  # one block may be open
            parts[part] += start.elapsed_time(end) / 1e3 if self._is_cuda else end - start
        return {f"{part}_s": seconds for part, seconds in parts.items()}
