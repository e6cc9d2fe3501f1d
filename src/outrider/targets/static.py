"""The placement of chain drafts on a GPU, uploaded in one copy.

Every tensor made from host numbers is a copy to the device, and a copy from pageable memory blocks the host until the
queue is empty. The host knows slots, lengths, positions and roots of a step, so they are uploaded together, from pinned
memory, without blocking. The drafted tokens may stay on the device; they are not read here.

    slots [2, 0], lengths [5, 9], chains of 2 and 1 node      one copy of 2 + 2 + 6 + 6 + 2 (+ 18) numbers

Where all chains are equally long there is no mask: such rows are a causal chunk.

Shapes: B slots, N nodes, M = N + 1 rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.draft import Draft
from outrider.placement import Placement

__all__ = ["Placed", "place_chains", "upload"]


class Placed(NamedTuple):
    """The roots [B, 1] and the placement of all rows, on the cache's device."""

    roots_B1: Tensor
    placement: Placement


def upload(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Copy numbers to the device; on a GPU without blocking the host."""
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def place_chains(cache: KVCache, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Placed:
    """Place drafts that are chains, as `KVCache.place_draft` does for trees."""
    assert draft.is_chain
    assert draft.num_rows <= cache.plan.tail, f"{draft.num_rows} rows do not fit a tail of {cache.plan.tail}"
    B, M = len(slots), draft.num_rows
    lengths_B, counts_B = np.array(cache.lengths_of(slots)), np.array(draft.num_nodes)
    rows_M = np.arange(M)
    real_BM = rows_M <= counts_B[:, None]
    at_BM = lengths_B[:, None] + rows_M
    parts = [np.array(slots), lengths_B, np.where(real_BM, at_BM, lengths_B[:, None])]
    parts += [np.where(real_BM, at_BM, cache.trash), np.array(roots)]
    # chains of equal length are causal and need no mask
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
