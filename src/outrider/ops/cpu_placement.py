"""A placement in the form that kernels take: addresses and sizes, once every index is known to be within the cache.

Kernels trust their indices, so a wrong one would read or write outside. The check costs microseconds and runs before
every forward. Legend in `ops/base.py`.
"""

import ctypes
import struct
from functools import cache, lru_cache
from typing import Any

import torch
from numba import types
from torch import Tensor

from outrider.kernels.compiled import callback
from outrider.kernels.cpu.vector import i64
from outrider.placement import Placement

__all__ = ["address", "bits_of", "checked_addresses", "floats", "placement_addresses", "placement_shape"]


def placement_addresses(placement: Placement) -> tuple[int, ...]:
    """Return the addresses of a placement's tensors, in the order of the attention kernel's arguments."""
    mask = placement.mask_BMT
    indices = (placement.slots_B, placement.lengths_B, placement.positions_BM, placement.write_BM)
    addresses = [address(index, torch.int64) for index in indices]
    return (*addresses, 0 if mask is None else address(mask, torch.bool))


def placement_shape(placement: Placement) -> tuple[int, int, int]:
    """Return B, M and T."""
    B, M = placement.positions_BM.shape
    return B, M, M if placement.mask_BMT is None else placement.mask_BMT.shape[2]


def checked_addresses(
    placement: Placement, num_slots: int, capacity: int, num_positions: int, num_ahead: int = 0
) -> tuple[int, ...]:
    """Return `placement_addresses` after checking that the shapes match and every index is within the cache."""
    B, M = placement.positions_BM.shape
    mask = placement.mask_BMT
    T = M if mask is None else mask.shape[2]
    assert mask is None or mask.shape == (B, M, T), f"mask of shape {tuple(mask.shape)} for {B} slots of {M} rows"
    assert placement.slots_B.shape == placement.lengths_B.shape == (B,), "slots and lengths must be [B]"
    assert placement.write_BM.shape == (B, M), "write positions must be [B, M]"
    assert placement.limit <= capacity, f"limit {placement.limit} exceeds the cache's {capacity} positions"
    addresses = placement_addresses(placement)
    counts = (B, B, B * M, B * M)
    stops = (num_slots, placement.limit - T + 1 - num_ahead, num_positions - num_ahead, capacity - num_ahead)
    for start, count, stop in zip(addresses, counts, stops, strict=False):
        assert _within()(start, count, stop), f"indices {_numbers(start, count)} are not within 0..{stop - 1}"
    return addresses


@callback(types.int64, types.int64, types.int64, types.int64)
def within(start: int, count: int, stop: int) -> int:
    """Return 1 if all `count` int64 numbers at `start` are from 0 to `stop` - 1, else 0."""
    numbers = i64(start)
    for n in range(count):
        if numbers[n] < 0 or numbers[n] >= stop:
            return 0
    return 1


@cache
def _within() -> Any:
    return ctypes.CFUNCTYPE(*[ctypes.c_int64] * 4)(within.address)


def _numbers(start: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(start))


def address(x: Tensor, dtype: torch.dtype) -> int:
    """Return the address of a tensor's numbers; kernels trust that they are contiguous and of that dtype."""
    assert x.dtype == dtype, f"{x.dtype}, not {dtype}"
    assert x.is_contiguous(), f"strides {x.stride()} are not contiguous"
    return x.data_ptr()


def floats(x: Tensor | None) -> int:
    """Return the address of fp32 numbers, 0 for none."""
    return 0 if x is None else address(x, torch.float32)


@lru_cache(maxsize=64)
def bits_of(number: float) -> int:
    """Return the bits of an fp64 number as int64, the form in which a kernel's arguments hold it."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])
