"""The key/value cache of a running batch: one row of positions per slot, never cloned, never filled twice.

A slot of length n holds the keys and values of its first n committed tokens; the root, the last committed token, is not
among them. A step writes its rows (root and nodes) behind the length, in positions n, n+1, ..., and padding rows into
one trash position that nothing reads. `commit` then keeps the root and the accepted path: for a chain that is only a
new length, for a tree one gather moves the kept rows together. Whatever else lies behind the length is stale and is
overwritten by the next step.

    length 5, rows written to 5 6 7 8 (root, a, b, a's child)     accepted path: a, a's child = rows 1, 3
    commit moves position 8 to 7; the length becomes 8 (root, a, a's child)

Memory is planned once: `capacity` committed positions, `tail` positions for the rows of one step, one trash position.

Keys may lie transposed in memory, [L, C, H, D, S]: then the scores of many positions are sums over whole vectors. That
is for who computes; everybody else sees a view [L, C, H, S, D].

Shapes: L layers, C slots, H key/value heads, S positions (capacity + tail + 1, or a little more), D head size, B rows
of the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.placement import Placement

__all__ = ["CachePlan", "KVCache"]

TRANSPOSED = 32
"""Transposed keys have an odd multiple of so many positions: whole vectors, and no power of two from one number of a
head to the next, which would put all of them into the same few sets of a processor's first cache."""


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The size of a cache, known before it is made."""

    num_layers: int
    num_slots: int
    num_kv_heads: int
    head_dim: int
    capacity: int
    tail: int
    dtype: torch.dtype
    transposed_keys: bool = False

    @property
    def num_positions(self) -> int:
        return self.capacity + self.tail + 1

    @property
    def stored_positions(self) -> int:
        """S: the positions there is memory for."""
        multiple = -(-self.num_positions // TRANSPOSED)
        return TRANSPOSED * (multiple + 1 - multiple % 2) if self.transposed_keys else self.num_positions

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def bytes_per_slot(self) -> int:
        return self.bytes_per_token * self.stored_positions

    @property
    def num_bytes(self) -> int:
        return self.bytes_per_slot * self.num_slots


@final
class KVCache:
    """Keys and values of all layers and slots, with the number of committed positions of each slot."""

    def __init__(self, plan: CachePlan, device: torch.device | str = "cpu") -> None:
        shape = (plan.num_layers, plan.num_slots, plan.num_kv_heads, plan.stored_positions, plan.head_dim)
        self.plan = plan
        self.device = torch.device(device)
        if plan.transposed_keys:
            self.keys_LCHSD = torch.zeros(*shape[:3], *shape[:2:-1], dtype=plan.dtype, device=device).transpose(-1, -2)
        else:
            self.keys_LCHSD = torch.zeros(shape, dtype=plan.dtype, device=device)
        self.values_LCHSD = torch.zeros(shape, dtype=plan.dtype, device=device)
        self.lengths = [0] * plan.num_slots
        self.trash = plan.num_positions - 1

    def place_draft(self, slots: Sequence[int], draft: Draft) -> Placement:
        """Where the root and the nodes of each slot go, and what each row sees."""
        visible_BMM = draft.visible_BMM()
        lengths_B = self._lengths_B(slots)
        rows_M = torch.arange(draft.num_rows, device=self.device)
        assert draft.num_rows <= self.plan.tail, f"{draft.num_rows} rows do not fit a tail of {self.plan.tail}"
        return Placement(
            slots_B=torch.tensor(slots, device=self.device),
            lengths_B=lengths_B,
            positions_BM=lengths_B[:, None] + draft.depths_BM(visible_BMM),
            write_BM=torch.where(draft.real_rows_BM(), lengths_B[:, None] + rows_M, self.trash),
            mask_BMT=visible_BMM,
            limit=max(self.lengths[slot] for slot in slots) + draft.num_rows,
        )

    def place_real_rows(self, slots: Sequence[int], draft: Draft) -> Placement:
        """`place_draft` without padding rows, for the host: [B, M] where all drafts have one size, else [R, 1].

        Built from plain numbers, because on a processor whose caches a forward has just swept, every tensor operation
        costs some 20 microseconds.
        """
        assert draft.num_rows <= self.plan.tail, f"{draft.num_rows} rows do not fit a tail of {self.plan.tail}"
        lengths = self.lengths_of(slots)
        starts_B = np.array(lengths, dtype=np.int64)
        limit = max(lengths) + draft.num_rows
        if draft.is_chain and len(set(draft.num_nodes)) == 1:  # rows see what lies before them
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

    def place_chunk(self, slots: Sequence[int], counts: Sequence[int]) -> Placement:
        """Where the next `counts[b]` tokens of each slot go, as a causal chunk padded to the longest."""
        width = max(counts)
        assert all(self.lengths[slot] + width <= self.trash for slot in slots), "the chunk does not fit"
        lengths_B = self._lengths_B(slots)
        rows_M = torch.arange(width, device=self.device)
        real_BM = rows_M < torch.tensor(counts, device=self.device)[:, None]
        positions_BM = lengths_B[:, None] + rows_M
        return Placement(
            slots_B=torch.tensor(slots, device=self.device),
            lengths_B=lengths_B,
            positions_BM=torch.where(real_BM, positions_BM, 0),
            write_BM=torch.where(real_BM, positions_BM, self.trash),
            mask_BMT=None,
            limit=max(self.lengths[slot] for slot in slots) + width,
        )

    def place_tokens(
        self, slots: Sequence[int], counts: Sequence[int], behind: Sequence[int] | None = None, num_ahead: int = 0
    ) -> Placement:
        """The next `counts[b]` positions of each slot, without padding: [B, M] where all counts are equal, else [R, 1].

        Args:
            behind: positions of each slot that were written behind its length, and are seen.
            num_ahead: rows that may follow; see `Ops.shifted`.
        """
        starts = self.lengths_of(slots)
        if behind is not None:
            starts = [start + more for start, more in zip(starts, behind, strict=True)]
        starts_B, width, mask_BMT = np.array(starts, dtype=np.int64), max(counts), None
        slots_B = np.array(slots, dtype=np.int64)
        positions_BM = starts_B[:, None] + np.arange(width)
        if len(set(counts)) > 1:
            places_R = np.repeat(np.arange(len(counts)), counts)
            rows_R = np.concatenate([np.arange(count) for count in counts])
            slots_B, starts_B = slots_B[places_R], starts_B[places_R]
            positions_BM = (starts_B + rows_R)[:, None]
            mask_BMT = self._of(np.tri(width, dtype=bool)[rows_R][:, None])
        at_BM = self._of(positions_BM)
        return Placement(
            slots_B=self._of(slots_B),
            lengths_B=self._of(starts_B),
            positions_BM=at_BM,
            write_BM=at_BM,
            mask_BMT=mask_BMT,
            limit=max(starts) + width + num_ahead,
        )

    def _of(self, numbers: np.ndarray) -> Tensor:
        some = torch.from_numpy(numbers)
        return some if self.device.type == "cpu" else some.to(self.device)

    def extend(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Keep the first `counts[b]` rows that were written behind each slot's length."""
        for slot, count in zip(slots, counts, strict=True):
            assert self.lengths[slot] + count <= self.plan.capacity
            self.lengths[slot] += count

    def commit(self, slots: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        """Keep the root and the rows of each slot's accepted path, in path order."""
        for slot, path in zip(slots, paths, strict=True):
            start = self.lengths[slot] + 1
            moved = [(start + k, self.lengths[slot] + row) for k, row in enumerate(path) if row != k + 1]
            if moved:
                to, source = (torch.tensor(side, device=self.device) for side in zip(*moved, strict=True))
                for cached_LCHSD in (self.keys_LCHSD, self.values_LCHSD):
                    cached_LHSD = cached_LCHSD[:, slot]
                    cached_LHSD[:, :, to] = cached_LHSD[:, :, source]
        self.extend(slots, [1 + len(path) for path in paths])

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything behind the first `length` positions of a slot."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def reset(self, slot: int) -> None:
        """Free a slot for the next request."""
        self.lengths[slot] = 0

    def clear(self) -> None:
        """Free all slots and zero what lies in them: not even numbers that are not finite outlive it."""
        self.lengths[:] = [0] * self.plan.num_slots
        self.keys_LCHSD.zero_()
        self.values_LCHSD.zero_()

    def lengths_of(self, slots: Sequence[int]) -> list[int]:
        return [self.lengths[slot] for slot in slots]

    def _lengths_B(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(self.lengths_of(slots), device=self.device)


def _visible_MT(tree: Tree, width: int) -> np.ndarray:
    """bool: what the rows of one tree see of its rows; `width` columns."""
    seen_MT = np.zeros((len(tree.tokens) + 1, width), dtype=bool)
    seen_MT[0, 0] = True
    for node, parent in enumerate(tree.parents):
        seen_MT[node + 1] = seen_MT[parent + 1]
        seen_MT[node + 1, node + 1] = True
    return seen_MT
