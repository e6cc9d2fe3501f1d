"""A placement as kernels take it: addresses and sizes, once every index is known to lie within the cache.

Kernels trust their indices, so a wrong one would read or write outside. The check costs microseconds and runs before
every forward. Legend in `ops.py`.
"""

import torch
from torch import Tensor

from outrider.models.ops import Placement

__all__ = ["address", "check_placement", "placement_addresses", "placement_shape"]


def placement_addresses(placement: Placement) -> tuple[int, ...]:
    """Where a placement's tensors are, in the order in which the attention kernel takes them."""
    mask = placement.mask_BMT
    indices = (placement.slots_B, placement.lengths_B, placement.positions_BM, placement.write_BM)
    addresses = [address(index, torch.int64) for index in indices]
    return (*addresses, 0 if mask is None else address(mask, torch.bool))


def placement_shape(placement: Placement) -> tuple[int, int, int]:
    """B, M and T."""
    B, M = placement.positions_BM.shape
    return B, M, M if placement.mask_BMT is None else placement.mask_BMT.shape[2]


def check_placement(
    placement: Placement, num_slots: int, capacity: int, num_positions: int, num_ahead: int = 0
) -> None:
    B, M = placement.positions_BM.shape
    mask = placement.mask_BMT
    T = M if mask is None else mask.shape[2]
    assert mask is None or mask.shape == (B, M, T), f"mask of shape {tuple(mask.shape)} for {B} slots of {M} rows"
    assert placement.slots_B.shape == placement.lengths_B.shape == (B,), "slots and lengths must be [B]"
    assert placement.write_BM.shape == (B, M), "write positions must be [B, M]"
    assert placement.limit <= capacity, f"limit {placement.limit} exceeds the cache's {capacity} positions"
    bounds = (
        (placement.slots_B, num_slots),
        (placement.write_BM, capacity - num_ahead),
        (placement.positions_BM, num_positions - num_ahead),
        (placement.lengths_B, placement.limit - T + 1 - num_ahead),
    )
    for index, stop in bounds:
        indices = index.numpy()
        low, high = indices.min(), indices.max()
        assert 0 <= low <= high < stop, f"indices {low}..{high} are not within 0..{stop - 1}"


def address(x: Tensor, dtype: torch.dtype) -> int:
    """Where a tensor's numbers are; kernels trust that they are contiguous and of that dtype."""
    assert x.dtype == dtype, f"{x.dtype}, not {dtype}"
    assert x.is_contiguous(), f"strides {x.stride()} are not contiguous"
    return x.data_ptr()
