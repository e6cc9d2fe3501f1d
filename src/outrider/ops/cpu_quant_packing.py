"""Quantised matrices in the layout of `kernels/cpu/quant_layout.py`, packed by ranges of rows.

Example: 48 rows of Q4_1 with 576 features are, with 8 lanes, six strips of 18 blocks of 160 bytes.

Shapes: O output features, F input features, N strips, L lanes (rows of a strip), B blocks of 32 features, G groups.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from outrider.kernels.cpu.arena import Arena
from outrider.kernels.cpu.quant_embed import quant_embed
from outrider.kernels.cpu.quant_layout import BLOCK, PER_SUPER, TABLES, Layout
from outrider.kernels.cpu.threads import launch
from outrider.kernels.cpu.vector import WIDTH
from outrider.ops.base import Packed
from outrider.ops.quantised import QuantFormat, QuantisedMatrix, QuantRows

__all__ = ["Span", "layout_of", "packed_matrix", "unpacked_matrix"]

RANGE_BYTES = 16 * 2**20
"""Codes that are in memory at once while a matrix is packed, in bytes."""

Span = tuple[QuantisedMatrix, int, int]
"""Rows of a matrix: from, to before."""


def layout_of(format: QuantFormat) -> Layout:
    """Return the layout in memory of a format."""
    return Layout(
        bits=format.bits,
        offset=format.offset,
        table=None if format.table is None else TABLES.index(format.table),
        group=format.group,
        scales=format.scales,
        has_minima=format.has_minima,
    )


def packed_matrix(arena: Arena, strips: Sequence[Sequence[Span]], out_features: int, bias_O: Tensor | None) -> Packed:
    """Pack an even number of strips of at most `WIDTH` rows, of matrices of one format.

    Raises:
        CheckpointError: if a scale is not finite, or the file cannot be read.
    """
    matrix = next(span[0] for strip in strips for span in strip)
    F, layout = matrix.shape[1], layout_of(matrix.format)
    strip_bytes = layout.strip_bytes(WIDTH, F // BLOCK)
    data = arena.empty((len(strips), strip_bytes), torch.uint8)
    packed_NB = data.numpy()
    at_once = max(1, RANGE_BYTES // (2 * F * WIDTH)) * 2  # even: no range is padding alone
    for first in range(0, len(strips), at_once):
        some = strips[first : first + at_once]
        _fill(packed_NB[first : first + at_once], _joined(some), layout)
    bias = None if bias_O is None else pad(bias_O.detach().float(), (0, len(strips) * WIDTH - len(bias_O)))
    return Packed(
        in_features=F,
        out_features=out_features,
        num_bytes=data.nbytes + (0 if bias is None else bias.nbytes),
        data=data,
        bias=bias,
        layout=layout,
    )


def _joined(strips: Sequence[Sequence[Span]]) -> dict[str, NDArray[Any]]:
    """Return all rows of the strips, missing ones as zeros; the rows of a matrix are read at once."""
    moves: dict[int, tuple[QuantisedMatrix, list[int], list[int]]] = {}
    for number, strip in enumerate(strips):
        row = number * WIDTH
        for matrix, low, high in strip:
            _, sources, places = moves.setdefault(id(matrix), (matrix, [], []))
            sources.extend(range(low, high))
            places.extend(range(row, row + high - low))
            row += high - low
    joined: dict[str, NDArray[Any]] = {}
    for matrix, sources, places in moves.values():
        first = min(sources)
        taken = np.array(sources) - first
        for name, array in _fields(matrix.rows(first, max(sources) + 1)).items():
            if name not in joined:
                joined[name] = np.zeros((len(strips) * WIDTH, array.shape[1]), array.dtype)
            joined[name][places] = array[taken]
    return joined


def _fields(rows: QuantRows) -> dict[str, NDArray[Any]]:
    arrays = {
        "codes": rows.codes_OF,
        "scales": rows.scales_OG,
        "minima": rows.minima_OG,
        "supers": rows.supers_OS,
        "super_minima": rows.super_minima_OS,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _fill(packed_NB: NDArray[Any], rows: dict[str, NDArray[Any]], layout: Layout) -> None:
    """Write strips of whole rows."""
    N, F = len(packed_NB), rows["codes"].shape[1]
    B = F // BLOCK
    codes_NBGL4 = rows["codes"].reshape(N, WIDTH, B, 8, 4).transpose(0, 2, 3, 1, 4)
    parts = [_in_bits(codes_NBGL4, layout.bits)]
    for name in ("scales", "minima"):
        if name in rows:
            parts.append(_bytes(_by_lanes(rows[name], N, B, layout.groups)))
    blocks_NBX = np.concatenate([part.reshape(N, B, -1) for part in parts], axis=2)
    if layout.scales != "super":
        packed_NB[:] = blocks_NBX.reshape(N, -1)
        return
    supers = [
        _bytes(_by_lanes(rows[name], N, B // PER_SUPER, 1)) for name in ("supers", "super_minima") if name in rows
    ]
    whole = [*(part.reshape(N, B // PER_SUPER, -1) for part in supers), blocks_NBX.reshape(N, B // PER_SUPER, -1)]
    packed_NB[:] = np.concatenate(whole, axis=2).reshape(N, -1)


def _in_bits(codes_NBGL4: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return codes of 4, 5, 6 or 8 bits as bytes [N, B, bytes]."""
    N, B = codes_NBGL4.shape[:2]
    if bits == 8:
        return np.ascontiguousarray(codes_NBGL4).reshape(N, B, -1)
    low = codes_NBGL4 & 15
    nibbles = low[:, :, :4] | low[:, :, 4:] << 4
    extra = bits - 4
    if not extra:
        return nibbles.reshape(N, B, -1)
    high, per_plane = codes_NBGL4 >> 4, 8 // extra
    planes = np.zeros_like(nibbles[:, :, :extra])
    for group in range(8):
        planes[:, :, group // per_plane] |= high[:, :, group] << (group % per_plane * extra)
    return np.concatenate([nibbles.reshape(N, B, -1), planes.reshape(N, B, -1)], axis=2)


def _by_lanes(numbers_OG: NDArray[Any], N: int, B: int, groups: int) -> NDArray[Any]:
    return np.ascontiguousarray(numbers_OG.reshape(N, WIDTH, B, groups).transpose(0, 2, 3, 1))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(array.shape[0], array.shape[1], -1).view(np.uint8)


def unpacked_matrix(packed: Packed) -> Tensor:
    """Return the values [O, F] of a packed matrix, in fp32."""
    out_OF = torch.empty(packed.out_features, packed.in_features, dtype=torch.float32)
    tokens_O = torch.arange(packed.out_features)
    launch(
        quant_embed(packed.layout).address,
        1,
        packed.data.data_ptr(),
        0,
        packed.in_features,
        tokens_O.data_ptr(),
        out_OF.data_ptr(),
        packed.out_features,
    )
    return out_OF
