"""Weights in the layout of `linear.py`: blocks of two vectors of output columns, [block][feature][2 * WIDTH].

In bf16 the two vectors are interleaved, so that one load reads both; where the processor multiplies pairs of bf16
numbers, features are. Quantised matrices have the layout of `kernels/cpu/quant_layout.py`.

A drafter's matrices are rounded to 8 or 4 bits while they are packed: the bytes they read decide their speed, and the
target verifies their tokens. OUTRIDER_DRAFT_WEIGHTS=target keeps them in the target's dtype, as matrices stay that have
no whole groups of 32 features.

Worked example: 40 columns of 64 features in bf16 are, with 8 lanes, three blocks of 2 KB; 8 of the 48 columns are zero.

Shapes: O output columns, F features, I inner size of a gated MLP.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from outrider.kernels.cpu.arena import Arena
from outrider.kernels.cpu.isa import has_bf16_dots
from outrider.kernels.cpu.vector import WIDTH
from outrider.ops.base import Packed
from outrider.ops.cpu_quant_packing import Span, packed_matrix, unpacked_matrix
from outrider.ops.quantised import Matrix, QuantisedMatrix, dense
from outrider.ops.rounding import Kind, rounded

__all__ = ["Packing", "pack_gated", "pack_matrices", "unpacked"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The numbers that plain matrices are packed as.

    dtype      bf16 or fp32
    exact      matrices wider than `dtype` are packed in fp32
    rounding   matrices are rounded to codes where they can be; None for none
    """

    dtype: torch.dtype
    exact: bool = False
    rounding: Kind | None = None

    def matrix(self, weight_OF: Matrix) -> Matrix:
        """Return the matrix that is packed in the place of this one."""
        return weight_OF if self.rounding is None else rounded(weight_OF, self.rounding)

    def dtype_of(self, weight_OF: Tensor) -> torch.dtype:
        """Return the dtype in which plain numbers are packed."""
        return torch.float32 if self.exact and weight_OF.dtype != torch.bfloat16 else self.dtype


def pack_matrices(
    arena: Arena, packing: Packing, weight_OF: Matrix | Sequence[Matrix], bias_O: Tensor | None
) -> Packed:
    """Pack matrices, one below the other; neighbours of one kind become one part."""
    given = [weight_OF] if isinstance(weight_OF, Tensor | QuantisedMatrix) else weight_OF
    matrices = [packing.matrix(matrix) for matrix in given]
    parts: list[Packed] = []
    first = 0
    for some in _alike(matrices):
        rows = sum(matrix.shape[0] for matrix in some)
        bias = None if bias_O is None else bias_O[first : first + rows]
        first += rows
        quantised = [matrix for matrix in some if isinstance(matrix, QuantisedMatrix)]
        if quantised:
            parts.append(packed_matrix(arena, _strips(quantised), rows, bias))
        else:
            whole_OF = whole_blocks(dense(some), 2 * WIDTH)
            parts.append(packed(arena, packing.dtype_of(whole_OF), whole_OF, rows, bias))
    if len(parts) == 1:
        return parts[0]
    return Packed(
        in_features=parts[0].in_features,
        out_features=first,
        num_bytes=sum(part.num_bytes for part in parts),
        data=torch.empty(0),
        bias=None,
        parts=tuple(parts),
    )


def pack_gated(arena: Arena, packing: Packing, gate_IF: Matrix, up_IF: Matrix) -> Packed:
    """Pack both halves of a gated MLP, alternating by vectors. Halves of different kinds are widened to fp32."""
    gate_IF, up_IF, rows = packing.matrix(gate_IF), packing.matrix(up_IF), 2 * gate_IF.shape[0]
    if isinstance(gate_IF, QuantisedMatrix) and isinstance(up_IF, QuantisedMatrix) and gate_IF.format == up_IF.format:
        halves = (_strips([gate_IF]), _strips([up_IF]))
        strips = [strip for pair in zip(*halves, strict=True) for strip in pair if pair[0]]
        return packed_matrix(arena, strips, rows, None)
    is_quantised = isinstance(gate_IF, QuantisedMatrix) or isinstance(up_IF, QuantisedMatrix)
    whole_OF = interleaved(dense(gate_IF), dense(up_IF))
    return packed(arena, torch.float32 if is_quantised else packing.dtype_of(whole_OF), whole_OF, rows, None)


def _alike(matrices: Sequence[Matrix]) -> Iterator[list[Matrix]]:
    """Yield runs of neighbours that are plain numbers, or quantised in one format."""
    kinds = [matrix.format if isinstance(matrix, QuantisedMatrix) else None for matrix in matrices]
    start = 0
    for end in range(1, len(matrices) + 1):
        if end == len(matrices) or kinds[end] != kinds[start]:
            yield list(matrices[start:end])
            start = end


def _strips(matrices: Sequence[QuantisedMatrix]) -> list[list[Span]]:
    """Cut rows into strips of `WIDTH`, an even number of them; a strip may hold rows of two matrices."""
    strips: list[list[Span]] = [[]]
    left = WIDTH
    for matrix in matrices:
        start = 0
        while start < matrix.shape[0]:
            if not left:
                strips.append([])
                left = WIDTH
            stop = min(matrix.shape[0], start + left)
            strips[-1].append((matrix, start, stop))
            left -= stop - start
            start = stop
    return strips + [[]] * (len(strips) % 2)


def packed(arena: Arena, dtype: torch.dtype, weight_OF: Tensor, out_features: int, bias_O: Tensor | None) -> Packed:
    """Pack whole blocks in bf16 or fp32; the first `out_features` columns are real."""
    blocks = weight_OF.to(dtype).view(-1, 2, WIDTH, weight_OF.shape[1])
    if dtype == torch.bfloat16 and has_bf16_dots() and weight_OF.shape[1] % 2 == 0:
        ordered = blocks.view(*blocks.shape[:3], -1, 2).permute(0, 3, 1, 2, 4)
    else:
        ordered = blocks.permute((0, 3, 2, 1) if dtype == torch.bfloat16 else (0, 3, 1, 2))
    data = arena.empty(tuple(ordered.shape), dtype).copy_(ordered)
    bias = None if bias_O is None else pad(bias_O.detach().float(), (0, len(weight_OF) - len(bias_O)))
    return Packed(
        in_features=weight_OF.shape[1],
        out_features=out_features,
        num_bytes=data.nbytes + (0 if bias is None else bias.nbytes),
        data=data,
        bias=bias,
    )


def unpacked(packed: Packed) -> Tensor:
    """Return the weight that was packed; for quantised ones the dequantised numbers, in fp32."""
    if packed.parts:
        return torch.cat([unpacked(part) for part in packed.parts])
    if packed.layout is not None:
        return unpacked_matrix(packed)
    if packed.data.dim() == 5:
        return packed.data.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)[: packed.out_features].contiguous()
    order = (0, 3, 2, 1) if packed.data.dtype == torch.bfloat16 else (0, 2, 3, 1)
    return packed.data.permute(order).flatten(0, 2)[: packed.out_features].contiguous()


def whole_blocks(weight_OF: Tensor, columns: int) -> Tensor:
    """Append zero rows up to a multiple of `columns`."""
    weight_OF = weight_OF.detach()
    missing = -len(weight_OF) % columns
    return pad(weight_OF, (0, 0, 0, missing)) if missing else weight_OF


def interleaved(gate_IF: Tensor, up_IF: Tensor) -> Tensor:
    """Merge both halves of a gated MLP, alternating by vectors."""
    halves = [whole_blocks(half, WIDTH).view(-1, WIDTH, gate_IF.shape[1]) for half in (gate_IF, up_IF)]
    return torch.stack(halves, dim=1).flatten(0, 2)
