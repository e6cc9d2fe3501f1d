"""Few graphs for many shapes: forwards are padded to buckets and repeated.

A step has B slots with M rows each, and B, M and the longest context change all the time, but a graph has fixed shapes.
So B and M are rounded up to a bucket (1, 2, 3, 4, 6, 8, 12, 16, 24, ...), and so is `limit`, the number of cache
positions that are read, where the attention's shapes depend on it. One graph is recorded per bucket, at its first use,
and counted.

Padding changes nothing: a padded row sees nothing, is written to the cache's last position, which nothing reads, and
its results are dropped.

    3 slots, 5 rows, limit 700      buckets 3, 6 and 768: 18 rows are computed, 15 are returned

A body whose rows are not B * M, such as that of a draft head with two inputs, is recorded for its exact shape.

Results are copies: they stay valid after further replays.

Shapes: B slots, M rows of a slot, T tail positions, R = B * M, F features.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from outrider.ops.base import GraphBody, GraphCache, Result
from outrider.ops.graphs import Graph, GraphPool
from outrider.placement import Placement

__all__ = ["MAX_ROWS", "BucketGraph", "Replayer", "bucket"]

MAX_ROWS = 512
"""Largest forward whose launches matter, in rows."""
MAX_EXACT_ROWS = 32
"""Most rows of a shape that cannot be padded: each needs a graph of its own."""
LEAST_LIMIT = 256
NO_LIMIT = 1 << 30
TRASH = -1
"""Position that padding is written to: the last one of every cache, counted from its end."""


def bucket(number: int) -> int:
    """Return the smallest 2^k or 3 * 2^k that is at least `number`.

    >>> [bucket(number) for number in (1, 3, 5, 9, 100)]
    [1, 3, 6, 12, 128]
    """
    power = 1 << max(0, number - 1).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= number else power


@dataclass(frozen=True, eq=False)
class BucketGraph:
    """A graph with the buffers that it reads, in the shapes of its bucket."""

    x_RF: Tensor
    placement: Placement
    graph: Graph[Result]

    def fill(self, x_RF: Tensor, given: Placement) -> None:
        """Copy one call's input into the buffers, and turn the remainder into padding."""
        own = self.placement
        (B, M), (wide_B, wide_M) = given.positions_BM.shape, own.positions_BM.shape
        is_padded = (wide_B, wide_M) != (B, M)
        if own.mask_BMT is not None and given.mask_BMT is not None:
            is_padded |= own.mask_BMT.shape != given.mask_BMT.shape
        if is_padded:
            for index in (own.slots_B, own.lengths_B, own.positions_BM):
                index.zero_()
            own.write_BM.fill_(TRASH)
            if own.mask_BMT is not None:
                own.mask_BMT.zero_()
        if (wide_B, wide_M) == (B, M):
            self.x_RF.copy_(x_RF)
        else:
            self.x_RF.view(wide_B, wide_M, -1)[:B, :M].copy_(x_RF.view(B, M, -1))
        indices = [own.slots_B[:B], own.lengths_B[:B], own.positions_BM[:B, :M], own.write_BM[:B, :M]]
        torch._foreach_copy_(indices, [given.slots_B, given.lengths_B, given.positions_BM, given.write_BM])
        if given.mask_BMT is not None:
            assert own.mask_BMT is not None
            own.mask_BMT[:B, :M, : given.mask_BMT.shape[2]].copy_(given.mask_BMT)


@final
class Replayer:
    """Repeats forwards from graphs.

    Args:
        graphs: the pool that records and counts them.
        limited: True if the computation depends on `Placement.limit`; if not, one graph serves all contexts.
    """

    def __init__(self, graphs: GraphPool, *, limited: bool) -> None:
        self.graphs = graphs
        self._limited = limited

    def __call__(
        self, graph_cache: GraphCache, key: Hashable, body: GraphBody, x_RF: Tensor, placement: Placement
    ) -> Result:
        """Run a body as `Ops.replay` does."""
        B, M = placement.positions_BM.shape
        is_exact = len(x_RF) != B * M
        shape = _shape(placement, self._limited, is_exact)
        if shape[0] * shape[1] > (MAX_EXACT_ROWS if is_exact else MAX_ROWS):
            return body(x_RF, placement)
        key = (key, x_RF.dtype, placement.mask_BMT is None, *shape)
        if key not in graph_cache:
            graph_cache[key] = self._record(body, x_RF, placement, shape)
        static: BucketGraph = graph_cache[key]
        static.fill(x_RF, placement)
        static.graph.replay()
        return Result(*(_own(rows, shape, B, M) for rows in static.graph.result))

    def _record(
        self, body: GraphBody, x_RF: Tensor, placement: Placement, shape: tuple[int, int, int, int]
    ) -> BucketGraph:
        B, M, T, limit = shape
        like = placement.positions_BM
        static = Placement(
            slots_B=like.new_zeros(B),
            lengths_B=like.new_zeros(B),
            positions_BM=like.new_zeros(B, M),
            write_BM=like.new_full((B, M), TRASH),
            mask_BMT=None if placement.mask_BMT is None else placement.mask_BMT.new_zeros(B, M, T),
            limit=limit,
        )
        rows = B * M if len(x_RF) == like.numel() else len(x_RF)
        x_static_RF = x_RF.new_zeros(rows, x_RF.shape[1])

        def call() -> Result:
            return body(x_static_RF.clone(), replace(static))  # a body changes its input; back ends know a placement

        return BucketGraph(x_static_RF, static, self.graphs.record(call))


def _shape(placement: Placement, limited: bool, is_exact: bool) -> tuple[int, int, int, int]:
    """Return B, M, T and limit of the graph.

    A causal chunk has no mask to pad its rows with, so its M stays.
    """
    B, M = placement.positions_BM.shape
    mask = placement.mask_BMT
    T = M if mask is None else mask.shape[2]
    wide_B, wide_M = (B, M) if is_exact else (bucket(B), M if mask is None else bucket(M))
    wide_T = wide_M if T == M else T if is_exact else bucket(T)
    limit = bucket(max(LEAST_LIMIT, placement.limit + wide_T - T)) if limited else NO_LIMIT
    return wide_B, wide_M, wide_T, limit


def _own(rows_RX: Tensor | None, shape: tuple[int, int, int, int], B: int, M: int) -> Tensor | None:
    if rows_RX is None or shape[:2] == (B, M):
        return None if rows_RX is None else rows_RX.clone()
    real_BMX = rows_RX.view(shape[0], shape[1], -1)[:B, :M]
    return real_BMX.clone(memory_format=torch.contiguous_format).view(B * M, -1)
