"""The kernels that compute a product with a packed weight, and their arguments.

A weight of one kind is one kernel. A weight of several parts is one for each, whose outputs are side by side: in a file
of mixed types the values may have another type than the queries and keys.

Example: 960 outputs of which 768 are Q4_K and 192 Q6_K are two kernels; the second writes from column 768 on.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.kernels.cpu.isa import chosen
from outrider.kernels.cpu.linear import BF16, FP32, PAIRS, linear
from outrider.kernels.cpu.quant_linear import HEIGHT, quant_linear, row_bytes
from outrider.kernels.cpu.vector import TILE_ROWS
from outrider.ops.base import Packed
from outrider.ops.cpu_placement import bits_of, floats

__all__ = ["LINEAR_OUT", "TICKETS_PER_THREAD", "Empty", "Launch", "kind_of", "panel_rows_of", "products"]

PANEL_BYTES = 192 * 1024  # activations that fit the second-level cache beside a chunk of weights
TICKETS_PER_THREAD = 6
LINEAR_OUT = 9
"""The argument that is the address of a product."""
KINDS = {torch.float32: FP32, torch.bfloat16: BF16}

Empty = Callable[..., Tensor]
"""Makes an fp32 buffer of a shape."""


class Launch(NamedTuple):
    """A kernel, the tensors that its arguments point to, and its arguments."""

    kernel: int
    tensors: tuple[Tensor | None, ...]
    arguments: tuple[int, ...]


def products(
    x_RF: Tensor,
    norm_F: Tensor | None,
    eps: float,
    packed: Packed,
    out_RO: Tensor,
    mode: int,
    threads: int,
    empty: Empty,
) -> Iterator[Launch]:
    """Yield the launches that compute the product of x, or of its RMSNorm, as `mode` says (`kernels/cpu/rows.py`)."""
    R, F = x_RF.shape
    assert packed.in_features == F, f"{F} features for a weight of {packed.in_features}"
    assert len(out_RO) == R, f"{R} rows onto {len(out_RO)}"
    column = 0
    for part in packed.parts or (packed,):
        if part.layout is None:
            blocks, kernel = part.data.shape[0], linear
            kind = kind_of(part)
            size, scratch = 4 * F, None
            if norm_F is not None or R > 1 or kind == PAIRS:
                scratch = empty(threads if R <= TILE_ROWS else 1, R, F)
        else:
            blocks, kernel, kind = part.data.shape[0] // 2, quant_linear(part.layout, chosen()), kind_of(part)
            size = row_bytes(part.layout, F)
            scratch = empty(threads if R <= HEIGHT else 1, R, size // 4)
        yield Launch(
            kernel.address,
            (x_RF, norm_F, scratch, part.data, part.bias, out_RO),
            (
                floats(x_RF),
                floats(norm_F),
                bits_of(eps),
                floats(scratch),
                part.data.data_ptr(),
                kind,
                floats(part.bias),
                F,
                out_RO.shape[1],
                floats(out_RO) + 4 * column,
                R,
                mode,
                blocks,
                chunk_of(blocks, threads),
                panel_rows_of(size),
                out_RO.shape[1] if not packed.parts else part.out_features,
            ),
        )
        column += part.out_features


def kind_of(packed: Packed) -> int:
    """Return the kernels' number for the kind of plain weights; 0 for quantised ones."""
    if packed.layout is not None:
        return 0
    return PAIRS if packed.data.dim() == 5 else KINDS[packed.data.dtype]


def panel_rows_of(row_bytes: int) -> int:
    """Return the rows of this size that fit the second-level cache, whole tiles of them."""
    return max(24, PANEL_BYTES // row_bytes // 24 * 24)


@cache
def chunk_of(num_blocks: int, threads: int) -> int:
    """Return the blocks of columns per ticket: a few, and so that all threads get equally many chunks."""
    most = max(1, num_blocks // (threads * TICKETS_PER_THREAD))
    even = (chunk for chunk in range(most, most // 2, -1) if -(-num_blocks // chunk) % threads == 0)
    return next(even, most)
