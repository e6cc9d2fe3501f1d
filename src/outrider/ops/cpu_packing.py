"""Weights in the layout of `linear.py`: blocks of two vectors of output columns, [block][feature][2 * WIDTH].

In bf16 the two vectors are interleaved, so that one load reads both. In int8 a column's numbers are multiples of its
scale, a 127th of its largest absolute value. Only drafters are packed in int8: the bytes they read decide their speed,
and the target verifies their tokens. OUTRIDER_DRAFT_WEIGHTS=target keeps them in the target's dtype.

Worked example: the column (0.5, -1.27, 0.004) has the scale 0.01 and is packed as 50, -127, 0.

Shapes: O output columns, F features, I inner size of a gated MLP.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from outrider.env import draft_weights
from outrider.kernels.cpu.arena import Arena
from outrider.kernels.cpu.vector import WIDTH
from outrider.ops.base import Packed
from outrider.ops.cpu_quant_packing import Span, packed_matrix, unpacked_matrix
from outrider.ops.quantised import Matrix, QuantisedMatrix, dense

__all__ = ["draft_in_bytes", "pack_gated", "pack_matrices", "unpacked"]

STEPS = 127


def pack_matrices(
    arena: Arena, dtype: torch.dtype, weight_OF: Matrix | Sequence[Matrix], bias_O: Tensor | None, exact: bool = False
) -> Packed:
    """Pack matrices, one below the other; neighbours of one kind become one part.

    With `exact`, plain numbers that are wider than `dtype` are packed in fp32.
    """
    matrices = [weight_OF] if isinstance(weight_OF, Tensor | QuantisedMatrix) else list(weight_OF)
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
            parts.append(packed(arena, _packing(dtype, whole_OF, exact), whole_OF, rows, bias))
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


def pack_gated(arena: Arena, dtype: torch.dtype, gate_IF: Matrix, up_IF: Matrix, exact: bool = False) -> Packed:
    """Pack both halves of a gated MLP, alternating by vectors. Halves of different kinds are widened to fp32."""
    rows = 2 * gate_IF.shape[0]
    if isinstance(gate_IF, QuantisedMatrix) and isinstance(up_IF, QuantisedMatrix) and gate_IF.format == up_IF.format:
        halves = (_strips([gate_IF]), _strips([up_IF]))
        strips = [strip for pair in zip(*halves, strict=True) for strip in pair if pair[0]]
        return packed_matrix(arena, strips, rows, None)
    if isinstance(gate_IF, QuantisedMatrix) or isinstance(up_IF, QuantisedMatrix):
        dtype = torch.float32
    whole_OF = interleaved(dense(gate_IF), dense(up_IF))
    return packed(arena, _packing(dtype, whole_OF, exact), whole_OF, rows, None)


def _packing(dtype: torch.dtype, weight_OF: Tensor, exact: bool) -> torch.dtype:
    """Return the dtype in which plain numbers are packed."""
    return torch.float32 if exact and weight_OF.dtype != torch.bfloat16 else dtype


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
    """Pack whole blocks in bf16, fp32 or int8; the first `out_features` columns are real."""
    scales_O = None
    if dtype == torch.int8:
        scales_O = weight_OF.float().abs().amax(1).clamp(min=1e-30) / STEPS
        weight_OF = (weight_OF.float() / scales_O[:, None]).round()
    blocks = weight_OF.to(dtype).view(-1, 2, WIDTH, weight_OF.shape[1])
    ordered = blocks.permute((0, 3, 2, 1) if dtype == torch.bfloat16 else (0, 3, 1, 2))
    data = arena.empty(tuple(ordered.shape), dtype).copy_(ordered)
    bias = None if bias_O is None else pad(bias_O.detach().float(), (0, len(weight_OF) - len(bias_O)))
    return Packed(
        in_features=weight_OF.shape[1],
        out_features=out_features,
        num_bytes=sum(part.nbytes for part in (data, bias, scales_O) if part is not None),
        data=data,
        bias=bias,
        scales=scales_O,
    )


def unpacked(packed: Packed) -> Tensor:
    """Return the weight that was packed; for quantised ones the dequantised numbers, in fp32."""
    if packed.parts:
        return torch.cat([unpacked(part) for part in packed.parts])
    if packed.layout is not None:
        return unpacked_matrix(packed)
    order = (0, 3, 2, 1) if packed.data.dtype == torch.bfloat16 else (0, 2, 3, 1)
    weight_OF = packed.data.permute(order).flatten(0, 2)
    if packed.scales is not None:
        weight_OF = weight_OF * packed.scales[:, None]
    return weight_OF[: packed.out_features].contiguous()


def whole_blocks(weight_OF: Tensor, columns: int) -> Tensor:
    """Append zero rows up to a multiple of `columns`."""
    weight_OF = weight_OF.detach()
    missing = -len(weight_OF) % columns
    return pad(weight_OF, (0, 0, 0, missing)) if missing else weight_OF


def interleaved(gate_IF: Tensor, up_IF: Tensor) -> Tensor:
    """Merge both halves of a gated MLP, alternating by vectors."""
    halves = [whole_blocks(half, WIDTH).view(-1, WIDTH, gate_IF.shape[1]) for half in (gate_IF, up_IF)]
    return torch.stack(halves, dim=1).flatten(0, 2)


def draft_in_bytes() -> bool:
    """Return whether drafters keep their weights in int8, by OUTRIDER_DRAFT_WEIGHTS.

    Raises:
        ConfigError: if it is something else.
    """
    return draft_weights() == "int8"
