"""Weights in the layout of `linear.py`: blocks of two vectors of output columns, [block][feature][2 * WIDTH].

In bf16 the two vectors are interleaved, so that one load reads both. In int8 a column's numbers are multiples of its
scale, a 127th of its largest absolute value. Only drafters are packed in int8: the bytes they read decide their speed,
and the target verifies their tokens. OUTRIDER_DRAFT_WEIGHTS=target keeps them in the target's dtype.

Worked example: the column (0.5, -1.27, 0.004) has the scale 0.01 and is packed as 50, -127, 0.

Shapes: O output columns, F features, I inner size of a gated MLP.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from outrider.env import draft_weights
from outrider.kernels.cpu.arena import Arena
from outrider.kernels.cpu.vector import WIDTH
from outrider.ops.base import Packed

__all__ = ["draft_in_bytes", "interleaved", "packed", "unpacked", "whole_blocks"]

STEPS = 127


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
    """Return the weight that was packed; for int8 the dequantised numbers, in fp32."""
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
