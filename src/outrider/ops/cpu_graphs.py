"""A forward pass that runs without Python: its kernels are recorded once and repeated.

A forward of a small model is some 150 kernels of about 100 us. Preparing each from Python costs 15 us, during which the
processor idles. The kernels and their arguments are the same in every step with the same number of rows, except for
the input, the placement and the address of the logits. So the first call with a shape records the arguments of every
kernel, on buffers that persist; later calls write the few that differ and run all kernels at once.

Worked example: one row of SmolLM2-135M is 30 * 5 + 1 kernels. Of their records, 30 hold the placement (five addresses)
and one the address of the logits; the rest is repeated unchanged.

Records hold addresses, so the recorder keeps every tensor it has seen alive, except the logits, which get a new address
each time. Results of equal shape share one buffer: a recorded body must use a result before it asks for the next of
that shape, as a decoder does.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.cpu.attention import MAX_ROWS, attention, scores_in, scratch_size
from outrider.kernels.cpu.softmax import MAX_HEADS
from outrider.kernels.cpu.threads import BLOCK, launch_all
from outrider.ops.base import GraphCache, Result
from outrider.ops.cpu_products import LINEAR_OUT
from outrider.placement import Placement

__all__ = ["Calls", "CpuGraph", "CpuGraphRecorder"]

SCRATCH = 24
"""The argument that is the scratch of attention; the length of a line of it follows."""


class Followed(NamedTuple):
    """An argument that is a number of the call's placement."""

    record: int
    column: int
    number: int


@final
class CpuGraphRecorder:
    """Records kernels with their arguments instead of running them, and keeps the tensors they point to."""

    def __init__(self) -> None:
        self.followed: list[Followed] = []
        self.moved: list[Placement] = []
        self.num_ahead = 0
        self.kernels: list[int] = []
        self.arguments: list[tuple[int, ...]] = []
        self.kept: list[Tensor | None] = []
        self._buffers: dict[tuple[int, ...], Tensor] = {}

    def empty(self, *shape: int) -> Tensor:
        """Return the buffer for results of this shape."""
        if shape not in self._buffers:
            self._buffers[shape] = torch.empty(shape, dtype=torch.float32)
        return self._buffers[shape]

    def add(self, kernel: int, arguments: tuple[int, ...], tensors: Sequence[Tensor | None]) -> None:
        self.kernels.append(kernel)
        self.arguments.append(arguments)
        self.kept.extend(tensors)

    def follow(self, column: int, number: int) -> None:
        """Mark argument `column` of the last kernel as number `number` of a call's placement."""
        self.followed.append(Followed(len(self.kernels) - 1, column, number))

    def knows(self, placement: Placement) -> bool:
        """Return whether the body made this placement itself."""
        return any(placement is moved for moved in self.moved)

    def blocks_NB(self) -> np.ndarray:
        """Return the argument records, one per kernel."""
        blocks_NB = np.zeros((len(self.kernels), BLOCK), dtype=np.int64)
        for block_B, arguments in zip(blocks_NB, self.arguments, strict=True):
            block_B[: len(arguments)] = arguments
        return blocks_NB

    def graph(
        self, threads: int, sizes: tuple[int, int, int], x_RF: Tensor, result: Result, graph_cache: GraphCache
    ) -> "CpuGraph":
        """Return what was recorded on `x_RF`; attention gets scratch for as many positions as the cache has."""
        kernels_N, blocks_NB = np.array(self.kernels, dtype=np.int64), self.blocks_NB()
        is_attention_N = kernels_N == attention.address
        row = scores_in(sizes[1])
        scratch = graph_cache.scratch(scratch_size(threads, MAX_ROWS, MAX_HEADS, row))
        blocks_NB[is_attention_N, SCRATCH], blocks_NB[is_attention_N, SCRATCH + 1] = scratch.data_ptr(), row
        logits_RV, features_RT = result
        kept, written_N = [*self.kept, scratch], np.zeros(0, dtype=np.int64)
        if logits_RV is not None:  # the last product written there; buffers are reused
            goal = logits_RV.data_ptr()
            written_N = np.flatnonzero(~is_attention_N & (blocks_NB[:, LINEAR_OUT] == goal))[-1:]
            if np.count_nonzero(blocks_NB == goal) == 1:
                kept = [tensor for tensor in kept if tensor is not logits_RV]
        return CpuGraph(
            threads=threads,
            kernels_N=kernels_N,
            blocks_NB=blocks_NB,
            x_RF=x_RF,
            features_RT=features_RT,
            sizes=sizes,
            num_ahead=self.num_ahead,
            followed=np.array(self.followed, dtype=np.int64).T,
            logits=None if logits_RV is None else (logits_RV.shape[0], logits_RV.shape[1]),
            written_N=written_N,
            logits_column=LINEAR_OUT,
            kept=tuple(kept),
        )


@final
class Calls(threading.local):
    """State of one thread's calls on a back end, which all engines of a target share.

    recorder    records the kernels instead of running them, while a body is recorded
    placement   the last one whose indices were checked, for caches of `sizes`; its tensors are at `addresses`
    """

    def __init__(self) -> None:
        self.recorder: CpuGraphRecorder | None = None
        self.placement: Placement | None = None
        self.sizes = (0, 0, 0)
        self.addresses: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class CpuGraph:
    """A recorded forward.

    x_RF        the buffer that its first kernel reads
    sizes       slots, positions and rotary positions of the cache, which bound a placement's indices
    num_ahead   positions that it writes behind its placement
    followed    arguments that hold numbers of the placement: a row each of records, columns and numbers
    logits      the shape of the logits [R, V], if there are any
    written_N   records that write the logits, in the argument column `logits_column`
    """

    threads: int
    kernels_N: np.ndarray
    blocks_NB: np.ndarray
    x_RF: Tensor
    features_RT: Tensor | None
    followed: np.ndarray
    sizes: tuple[int, int, int]
    num_ahead: int
    logits: tuple[int, int] | None
    written_N: np.ndarray
    logits_column: int
    kept: tuple[Tensor | None, ...]

    def run(self, x_RF: Tensor, placement: tuple[int, ...], graph_cache: GraphCache) -> Result:
        """Repeat the forward on another input and placement (addresses and sizes). Features belong to the caller."""
        self.x_RF.copy_(x_RF)
        records, columns, numbers = self.followed
        self.blocks_NB[records, columns] = np.array(placement)[numbers]
        logits_RV = None if self.logits is None else graph_cache.logits(*self.logits)
        if logits_RV is not None:
            self.blocks_NB[self.written_N, self.logits_column] = logits_RV.data_ptr()
        launch_all(self.threads, self.kernels_N, self.blocks_NB)
        return Result(logits_RV, None if self.features_RT is None else self.features_RT.clone())
