"""Placements: the cache positions of the rows of one forward, and which positions each row sees.

    root, a, b, a's child in a slot of length 5     write 5 6 7 8    rotary positions 5 6 6 7 (siblings share one)

Each builder serves one kind of call: `place_draft` trees on any device, `place_chains` chains on a GPU in one copy,
`place_real_rows` drafts on the CPU without padding, `place_chunk` a prompt, `place_tokens` the tokens that a drafter
reads, `place_level` the nodes of one level of its tree, `place_pending` and `place_next` its chains in a graph,
`place_context` and `place_block` those of a drafter that reads the target's states and drafts a block at once. A
drafter's rows keep their rotary positions where its cache keeps a window of the text (`KVCache.dropped`).

Shapes: R rows of the call, B slots, M rows of one slot, T tail positions, S cached positions, P rotary positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.draft import Draft, Tree

__all__ = [
    "Placed",
    "Placement",
    "place_block",
    "place_chains",
    "place_chunk",
    "place_context",
    "place_draft",
    "place_level",
    "place_next",
    "place_pending",
    "place_real_rows",
    "place_tokens",
    "upload",
]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The places of the rows of one forward; the same object serves all layers.

    slots_B      int64, the cache slot of each batch row; a slot may repeat if its rows are written apart
    lengths_B    int64, committed positions of each slot; all of them are visible to every row of the slot
    positions_BM int64, rotary positions, below P
    write_BM     int64, the cache position that receives the row's key and value; padding rows share a trash position
                 that no row can see
    mask_BMT     bool, True where row m sees position length + t. T may exceed M: the rest of the tail was written
                 before. None means a causal chunk: row m sees t = 0..m (T = M). With a mask, the mask alone decides
                 about the tail; with None the sliding window applies to the tail as well
    limit        int on the host, at least max(lengths) + T and at most S; positions from it on are never read
    """

    slots_B: Tensor
    lengths_B: Tensor
    positions_BM: Tensor
    write_BM: Tensor
    mask_BMT: Tensor | None
    limit: int

    def only(self, rows_R: Tensor) -> "Placement":
        """Return the given rows (indices into B * M), each as a batch row of its own. Needs a mask."""
        assert self.mask_BMT is not None
        row_slots_R = rows_R // self.positions_BM.shape[1]
        return Placement(
            slots_B=self.slots_B[row_slots_R],
            lengths_B=self.lengths_B[row_slots_R],
            positions_BM=self.positions_BM.flatten()[rows_R][:, None],
            write_BM=self.write_BM.flatten()[rows_R][:, None],
            mask_BMT=self.mask_BMT.flatten(0, 1)[rows_R][:, None],
            limit=self.limit,
        )

    def within(self, window: int | None, chunk: int | None = None) -> "Placement":
        """Return the rows for a layer with a sliding window: the mask hides tail rows `window` or more behind.

        A draft is rarely deeper than a window; then this is the placement itself. Needs T = M where it is deeper.

        Args:
            chunk: hide tail rows of other chunks too. Where T != M, tail rows count as those of a chain.
        """
        if chunk is not None and self.mask_BMT is not None and self.limit > chunk:
            return self._within_chunk(self.mask_BMT, chunk)
        if window is None or self.mask_BMT is None or self.mask_BMT.shape[2] <= window:
            return self
        assert self.mask_BMT.shape[1:] == (self.positions_BM.shape[1],) * 2, (
            "positions of earlier tail rows are unknown"
        )
        near_BMM = self.positions_BM[:, :, None] - self.positions_BM[:, None, :] < window
        return replace(self, mask_BMT=self.mask_BMT & near_BMM)

    def _within_chunk(self, mask_BMT: Tensor, chunk: int) -> "Placement":
        T, at_BM = mask_BMT.shape[2], self.positions_BM
        tail_BT = at_BM if at_BM.shape[1] == T else self.lengths_B[:, None] + torch.arange(T, device=mask_BMT.device)
        seen_BMT = mask_BMT & (at_BM[:, :, None] // chunk == tail_BT[:, None] // chunk)
        # on a GPU the host must not wait for the answer
        return self if not mask_BMT.is_cuda and torch.equal(seen_BMT, mask_BMT) else replace(self, mask_BMT=seen_BMT)


class Placed(NamedTuple):
    """The roots [B, 1] and the placement of all rows, on the cache's device."""

    roots_B1: Tensor
    placement: Placement


def place_draft(cache: KVCache, slots: Sequence[int], draft: Draft) -> Placement:
    """Place the root and the nodes of each slot, padded to [B, M]."""
    visible_BMM = draft.visible_BMM()
    lengths_B = torch.tensor(cache.lengths_of(slots), device=cache.device)
    rows_M = torch.arange(draft.num_rows, device=cache.device)
    assert draft.num_rows <= cache.plan.tail, f"{draft.num_rows} rows do not fit a tail of {cache.plan.tail}"
    return Placement(
        slots_B=torch.tensor(slots, device=cache.device),
        lengths_B=lengths_B,
        positions_BM=lengths_B[:, None] + draft.depths_BM(visible_BMM),
        write_BM=torch.where(draft.real_rows_BM(), lengths_B[:, None] + rows_M, cache.trash),
        mask_BMT=visible_BMM,
        limit=max(cache.lengths[slot] for slot in slots) + draft.num_rows,
    )


def place_chains(cache: KVCache, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Placed:
    """Place roots and chains on a device in one copy from pinned memory, padded to [B, M].

    Every tensor made from host numbers is a copy, and a copy from pageable memory blocks the host until the queue is
    empty. Slots [2, 0] with chains of 2 and 1 nodes take one copy of 2 + 2 + 6 + 6 + 2 (+ 18) numbers. Drafted tokens
    may stay on the device.
    """
    assert draft.is_chain
    assert draft.num_rows <= cache.plan.tail, f"{draft.num_rows} rows do not fit a tail of {cache.plan.tail}"
    B, M = len(slots), draft.num_rows
    lengths_B, counts_B = np.array(cache.lengths_of(slots)), np.array(draft.num_nodes)
    rows_M = np.arange(M)
    real_BM = rows_M <= counts_B[:, None]
    at_BM = lengths_B[:, None] + rows_M
    parts = [np.array(slots), lengths_B, np.where(real_BM, at_BM, lengths_B[:, None])]
    parts += [np.where(real_BM, at_BM, cache.trash), np.array(roots)]
    # chains of equal length are a causal chunk and need no mask
    if not real_BM.all():
        parts.append((rows_M[:, None] >= rows_M) & real_BM[:, :, None] & real_BM[:, None])
    sizes = [part.size for part in parts]
    packed = upload(np.concatenate([part.ravel() for part in parts]).astype(np.int64), cache.device).split(sizes)  # type: ignore[no-untyped-call]
    placement = Placement(
        slots_B=packed[0],
        lengths_B=packed[1],
        positions_BM=packed[2].view(B, M),
        write_BM=packed[3].view(B, M),
        mask_BMT=packed[5].view(B, M, M).bool() if len(packed) > 5 else None,
        limit=int(lengths_B.max()) + M,
    )
    return Placed(packed[4][:, None], placement)


def place_real_rows(cache: KVCache, slots: Sequence[int], draft: Draft) -> Placement:
    """Place a draft without padding rows, on the host: [B, M] where all drafts have one size, else [R, 1].

    It works on plain numbers: just after a forward, when the processor's caches are cold, every tensor operation costs
    some 20 microseconds.
    """
    assert draft.num_rows <= cache.plan.tail, f"{draft.num_rows} rows do not fit a tail of {cache.plan.tail}"
    lengths = cache.lengths_of(slots)
    starts_B = np.array(lengths, dtype=np.int64)
    limit = max(lengths) + draft.num_rows
    if draft.is_chain and len(set(draft.num_nodes)) == 1:  # equal chains are a causal chunk: no mask
        positions_BM = torch.from_numpy(starts_B[:, None] + np.arange(draft.num_rows))
        return Placement(
            slots_B=torch.from_numpy(np.array(slots, dtype=np.int64)),
            lengths_B=torch.from_numpy(starts_B),
            positions_BM=positions_BM,
            write_BM=positions_BM,
            mask_BMT=None,
            limit=limit,
        )
    rows = [(place, row) for place, count in enumerate(draft.num_nodes) for row in range(count + 1)]
    depths = [depth for tree in draft.trees for depth in [0, *tree.depths()]]
    places_R, rows_R = np.array(rows, dtype=np.int64).T
    mask_RT = np.concatenate([_visible_MT(tree, draft.num_rows) for tree in draft.trees])
    # drafts of different sizes have no rectangle: every row becomes a batch row of its own
    shape = (len(slots), draft.num_rows) if len(set(draft.num_nodes)) == 1 else (len(rows), 1)
    at_B = places_R if shape[1] == 1 else np.arange(len(slots))
    return Placement(
        slots_B=torch.from_numpy(np.array(slots, dtype=np.int64)[at_B]),
        lengths_B=torch.from_numpy(starts_B[at_B]),
        positions_BM=torch.from_numpy((starts_B[places_R] + np.array(depths)).reshape(shape)),
        write_BM=torch.from_numpy((starts_B[places_R] + rows_R).reshape(shape)),
        mask_BMT=torch.from_numpy(mask_RT.reshape(*shape, draft.num_rows)),
        limit=limit,
    )


def place_chunk(cache: KVCache, slots: Sequence[int], counts: Sequence[int]) -> Placement:
    """Place the next `counts[b]` tokens of each slot as a causal chunk, padded to the longest."""
    width = max(counts)
    assert all(cache.lengths[slot] + width <= cache.trash for slot in slots), "the chunk does not fit"
    lengths_B = torch.tensor(cache.lengths_of(slots), device=cache.device)
    rows_M = torch.arange(width, device=cache.device)
    real_BM = rows_M < torch.tensor(counts, device=cache.device)[:, None]
    positions_BM = lengths_B[:, None] + rows_M
    return Placement(
        slots_B=torch.tensor(slots, device=cache.device),
        lengths_B=lengths_B,
        positions_BM=torch.where(real_BM, positions_BM, 0),
        write_BM=torch.where(real_BM, positions_BM, cache.trash),
        mask_BMT=None,
        limit=max(cache.lengths[slot] for slot in slots) + width,
    )


def place_tokens(
    cache: KVCache, slots: Sequence[int], counts: Sequence[int], behind: Sequence[int] | None = None, num_ahead: int = 0
) -> Placement:
    """Place the next `counts[b]` tokens of each slot without padding: [B, M] where all counts are equal, else [R, 1].

    Args:
        behind: visible positions of each slot that were written behind its length.
        num_ahead: rows that may follow; see `Ops.shifted`.
    """
    starts = cache.lengths_of(slots)
    if behind is not None:
        starts = [start + more for start, more in zip(starts, behind, strict=True)]
    starts_B, width, mask_BMT = np.array(starts, dtype=np.int64), max(counts), None
    slots_B = np.array(slots, dtype=np.int64)
    dropped_B = np.array([cache.dropped[slot] for slot in slots], dtype=np.int64)
    write_BM = starts_B[:, None] + np.arange(width)
    if len(set(counts)) > 1:
        places_R = np.repeat(np.arange(len(counts)), counts)
        rows_R = np.concatenate([np.arange(count) for count in counts])
        slots_B, starts_B, dropped_B = slots_B[places_R], starts_B[places_R], dropped_B[places_R]
        write_BM = (starts_B + rows_R)[:, None]
        mask_BMT = upload(np.tri(width, dtype=bool)[rows_R][:, None], cache.device)
    at_BM = upload(write_BM, cache.device)
    return Placement(
        slots_B=upload(slots_B, cache.device),
        lengths_B=upload(starts_B, cache.device),
        positions_BM=upload(write_BM + dropped_B[:, None], cache.device) if dropped_B.any() else at_BM,
        write_BM=at_BM,
        mask_BMT=mask_BMT,
        limit=max(starts) + width + num_ahead,
    )


def place_level(cache: KVCache, slots: Sequence[int], num_tail: int, level: int, visible_BWT: np.ndarray) -> Placement:
    """Place W nodes of one level of a tree behind the `num_tail` tail positions of each slot.

    Args:
        level: number of the level, from 1: its nodes have the rotary position of the text's length + level - 1.
        visible_BWT: bool, the tail positions that each node sees, T = num_tail + W.
    """
    lengths, starts = cache.lengths_of(slots), cache.text_lengths_of(slots)
    num_new = visible_BWT.shape[1]
    return Placement(
        slots_B=torch.tensor(slots, device=cache.device),
        lengths_B=torch.tensor(lengths, device=cache.device),
        positions_BM=torch.tensor([[start + level - 1] * num_new for start in starts], device=cache.device),
        write_BM=torch.tensor(
            [list(range(length + num_tail, length + num_tail + num_new)) for length in lengths], device=cache.device
        ),
        mask_BMT=torch.from_numpy(visible_BWT).to(cache.device),
        limit=max(lengths) + num_tail + num_new,
    )


def place_pending(
    cache: KVCache, slots_B: Tensor, lengths_B: Tensor, dropped_B: Tensor, counts_B: Tensor, num_rows: int, limit: int
) -> Placement:
    """Place the first `counts_B` of `num_rows` rows behind each slot's tokens, in order, by operations on the device.

    A graph can record them: the numbers are tensors, and `limit` alone is fixed. `dropped_B` is `cache.dropped`.
    """
    rows_P = torch.arange(num_rows, device=slots_B.device)
    real_BP = rows_P < counts_B[:, None]
    at_BP = lengths_B[:, None] + rows_P
    return Placement(
        slots_B=slots_B,
        lengths_B=lengths_B,
        positions_BM=at_BP.where(real_BP, lengths_B[:, None]) + dropped_B[:, None],
        write_BM=at_BP.where(real_BP, cache.trash),
        mask_BMT=(rows_P[:, None] >= rows_P) & real_BP[:, :, None] & real_BP[:, None],
        limit=limit,
    )


def place_next(
    cache: KVCache, slots_B: Tensor, at_B: Tensor, dropped_B: Tensor, counts_B: Tensor, limit: int
) -> Placement:
    """Place one row of each slot at cache position `at_B`; as `place_pending`, a graph can record it."""
    return Placement(
        slots_B=slots_B,
        lengths_B=at_B,
        positions_BM=(at_B + dropped_B)[:, None],
        write_BM=at_B.where(counts_B > 0, cache.trash)[:, None],
        mask_BMT=None,
        limit=limit,
    )


def place_context(cache: KVCache, slots: Sequence[int], counts: Sequence[int]) -> Placement:
    """Place the next `counts[b]` tokens of each slot as rows [R, 1] of `Ops.store`: written, and seeing nothing."""
    starts_R = np.repeat(np.array(cache.lengths_of(slots), dtype=np.int64), counts)
    rows_R = np.concatenate([np.arange(count) for count in counts])
    dropped_R = np.repeat(np.array([cache.dropped[slot] for slot in slots], dtype=np.int64), counts)
    at_R1 = upload((starts_R + rows_R)[:, None], cache.device)
    return Placement(
        slots_B=upload(np.repeat(np.array(slots, dtype=np.int64), counts), cache.device),
        lengths_B=torch.zeros(len(rows_R), dtype=torch.int64, device=cache.device),
        positions_BM=upload((starts_R + rows_R + dropped_R)[:, None], cache.device),
        write_BM=at_R1,
        mask_BMT=None,
        limit=1,
    )


def place_block(cache: KVCache, slots: Sequence[int], width: int, *, is_causal: bool) -> Placement:
    """Place `width` rows behind each slot's tokens that all see each other, or in a causal layer only earlier ones."""
    lengths = cache.lengths_of(slots)
    lengths_B = upload(np.array(lengths, dtype=np.int64), cache.device)
    starts_B = upload(np.array(cache.text_lengths_of(slots), dtype=np.int64), cache.device)
    rows_M = torch.arange(width, device=cache.device)
    at_BM = lengths_B[:, None] + rows_M
    return Placement(
        slots_B=upload(np.array(slots, dtype=np.int64), cache.device),
        lengths_B=lengths_B,
        positions_BM=starts_B[:, None] + rows_M,
        write_BM=at_BM,
        mask_BMT=None if is_causal else torch.ones(len(slots), width, width, dtype=torch.bool, device=cache.device),
        limit=max(lengths) + width,
    )


def upload(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Copy numbers to the device; on a GPU from pinned memory, without blocking the host."""
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _visible_MT(tree: Tree, width: int) -> np.ndarray:
    """Return which rows of its tree each row sees, bool [M, T], with `width` columns."""
    seen_MT = np.zeros((len(tree.tokens) + 1, width), dtype=bool)
    seen_MT[0, 0] = True
    for node, parent in enumerate(tree.parents):  # parents come first, so their rows are complete
        seen_MT[node + 1] = seen_MT[parent + 1]
        seen_MT[node + 1, node + 1] = True
    return seen_MT
