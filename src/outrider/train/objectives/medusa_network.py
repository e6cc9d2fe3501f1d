"""The trainable Medusa heads, a plain module in fp32: `outrider.models.medusa` runs what it has learnt.

    x = h;  x += silu(W x + b) for every residual layer;  logits = W_out x

W and b start at zero and W_out as the target's output head, so that at first every head writes what the target would
write next, one token too early. That is a stable beginning, and silu has slope 1/2 at zero, so all of it learns.

Worked example: 4 heads of one layer on hidden size 576 and 49 152 tokens have 4 * (576 * 577 + 49 152 * 576) numbers,
114.6 million; with a shared output head 1.3 million.

Shapes: P positions, E hidden size, K output columns.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from outrider.models.medusa import MedusaShape

__all__ = ["MedusaNetwork"]


@final
class MedusaNetwork(nn.Module):
    """The trainable heads, named as in `MedusaShape.tensor_shapes`; `lm_heads` is empty where the head is shared."""

    def __init__(self, shape: MedusaShape, head_KE: Tensor) -> None:
        super().__init__()
        width, num_own = shape.hidden_size, shape.num_heads if shape.output == "own" else 0
        self.blocks = nn.ModuleList(_Residual(width, shape.num_layers) for _ in range(shape.num_heads))
        self.lm_heads = nn.ModuleList(nn.Linear(width, shape.num_columns, bias=False) for _ in range(num_own))
        with torch.no_grad():
            for parameter in self.blocks.parameters():
                parameter.zero_()
            for parameter in self.lm_heads.parameters():
                parameter.copy_(head_KE)

    def forward(self, head: int, states_PE: Tensor, shared_KE: Tensor) -> Tensor:
        """Return logits [P, K] of one head, counted from 0; heads without a projection of their own use `shared_KE`."""
        states_PE = self.blocks[head](states_PE)
        if self.lm_heads:
            logits_PK: Tensor = self.lm_heads[head](states_PE)
            return logits_PK
        return states_PE @ shared_KE.to(states_PE.dtype).T


@final
class _Residual(nn.Module):
    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, states_PE: Tensor) -> Tensor:
        for layer in self.layers:
            states_PE = states_PE + silu(layer(states_PE))
        return states_PE
