"""What recorded chain drafts share: the numbers they read, and where their rows go.

A recording has fixed shapes, so each slot's pending tokens are padded to the most rows that it can have, and the number
of slots to a bucket. Everything that differs from step to step comes in one tensor, and everything else is computed
from it on the device.

    slot, length, count, tokens     2, 9, 1, [7, 0]     slot 2 has read 9 tokens and is given one more, a 7

Padding rows see nothing and go to the cache's trash position.

Shapes: B slots, P rows of a slot's pending tokens, N drafted tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.ops.graph_buckets import bucket
from outrider.placement import Placement

__all__ = ["LEAST_LIMIT", "in_their_places", "packed", "place_next", "place_pending"]

LEAST_LIMIT = 1024


def packed(slots: Sequence[int], lengths: Sequence[int], tokens: Sequence[Sequence[int]], num_rows: int) -> np.ndarray:
    """Slots, lengths, counts and tokens int64 [B, 3 + P], of a bucket of slots; those that are none have count 0."""
    numbers = np.zeros((bucket(len(slots)), 3 + num_rows), np.int64)
    for row, (slot, length, some) in enumerate(zip(slots, lengths, tokens, strict=True)):
        numbers[row, : 3 + len(some)] = [slot, length, len(some), *some]
    return numbers


def place_pending(
    cache: KVCache, slots_B: Tensor, lengths_B: Tensor, counts_B: Tensor, num_rows: int, limit: int
) -> Placement:
    """The first `counts_B` of `num_rows` rows behind each slot's tokens, in order."""
    rows_P = torch.arange(num_rows, device=slots_B.device)
    real_BP = rows_P < counts_B[:, None]
    at_BP = lengths_B[:, None] + rows_P
    return Placement(
        slots_B=slots_B,
        lengths_B=lengths_B,
        positions_BM=at_BP.where(real_BP, lengths_B[:, None]),
        write_BM=at_BP.where(real_BP, cache.trash),
        mask_BMT=(rows_P[:, None] >= rows_P) & real_BP[:, :, None] & real_BP[:, None],
        limit=limit,
    )


def place_next(cache: KVCache, slots_B: Tensor, at_B: Tensor, counts_B: Tensor, limit: int) -> Placement:
    """One row of each slot at position `at_B`."""
    return Placement(
        slots_B=slots_B,
        lengths_B=at_B,
        positions_BM=at_B[:, None],
        write_BM=at_B.where(counts_B > 0, cache.trash)[:, None],
        mask_BMT=None,
        limit=limit,
    )


def in_their_places(slots: Sequence[int], active: Sequence[int], tokens_BN: Tensor) -> Tensor:
    """Tokens of all slots, zeros for those that are not active; `tokens_BN` are of the active ones."""
    if len(active) == len(slots):
        return tokens_BN
    places = torch.tensor([list(slots).index(slot) for slot in active], device=tokens_BN.device)
    return tokens_BN.new_zeros(len(slots), tokens_BN.shape[1]).index_copy(0, places, tokens_BN)
