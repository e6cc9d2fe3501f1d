"""DFlash-2's convolutions: around attention and MLP, each slot of a block also reads the slots just before it.

A slot's kernel is a fixed one per channel, and a correction per group of channels that depends on the slot itself. One
product of the sublayer's normalised input gives the corrections of both convolutions, before and after the sublayer:

    d = W x                                                              [slot, side, t, group]
    u_i = sum_t (base[0, t] + d_i[0, t, group]) * x_{i-t}                before
    v_i = sum_t (base[1, t] + d_i[1, t, group]) * sublayer(u)_{i-t}      after; the residual stream gets v

A slot before the first of its block counts as zero, whatever the text was. Published networks have t = 0, 1 and groups
of 16 channels. Source: z-lab/dflash.

Worked example: base 1 at t = 0, 0 at t = 1, and W = 0 change nothing; training begins there.

Shapes: B blocks, M slots of a block, N = B * M, E hidden size, T kernel size, G groups, I inner features.
"""

from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.models.block import Block
from outrider.ops.base import Ops

__all__ = ["CONVOLUTIONS", "Convolution", "Convolutions", "convolution_shapes", "convolved"]

CONVOLUTIONS = ("attention_conv", "mlp_conv")
BASE, PROJECTION = "base_kernel", "kernel_projection.weight"


def convolution_shapes(width: int, kernel_size: int, group_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one layer's tensors, by name within the layer."""
    shapes = {BASE: (2, kernel_size, width), PROJECTION: (2 * kernel_size * (width // group_size), width)}
    return {f"{part}.{name}": shape for part in CONVOLUTIONS for name, shape in shapes.items()}


def convolved(x_BME: Tensor, base_TE: Tensor, delta_BMTG: Tensor) -> Tensor:
    """Apply one convolution to every block."""
    B, M, T, G = delta_BMTG.shape
    x_BMGC = x_BME.view(B, M, G, -1)
    kernels_BMTGC = base_TE.view(T, G, -1) + delta_BMTG[..., None]
    out_BMGC = torch.zeros_like(x_BMGC)
    for back in range(min(T, M)):
        out_BMGC[:, back:] += kernels_BMTGC[:, back:, back] * x_BMGC[:, : M - back]
    return out_BMGC.flatten(-2)


@final
class Convolution:
    """Both convolutions of one sublayer, packed.

    Args:
        weights: all tensors of the network.
        prefix: that of these two, such as "layers.0.mlp_conv.".
        ops: computes.
        packer: packs.
    """

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, ops: Ops, packer: Ops) -> None:
        self.ops = ops
        self.base_2TE = weights[prefix + BASE].to(ops.activation_dtype)
        self.projection = packer.pack(weights[prefix + PROJECTION])

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return self.base_2TE.nbytes + self.projection.num_bytes

    def before(self, x_NE: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
        """Return a sublayer's convolved input, and the corrections [B, M, T, G] that `after` takes.

        Args:
            x_NE: the normalised input.
        """
        delta_NX = self.ops.norm_project(x_NE, None, 0.0, self.projection)
        T = self.base_2TE.shape[1]
        delta_BM2TG = delta_NX.view(-1, num_slots, 2, T, delta_NX.shape[1] // (2 * T))
        return self._side(0, x_NE, delta_BM2TG[:, :, 0]), delta_BM2TG[:, :, 1]

    def after(self, y_NE: Tensor, delta_BMTG: Tensor) -> Tensor:
        """Return the sublayer's convolved output."""
        return self._side(1, y_NE, delta_BMTG)

    def _side(self, side: int, x_NE: Tensor, delta_BMTG: Tensor) -> Tensor:
        return convolved(x_NE.view(*delta_BMTG.shape[:2], -1), self.base_2TE[side], delta_BMTG).flatten(0, 1)


@final
class Convolutions(NamedTuple):
    """Those of one layer, in the order of `CONVOLUTIONS`."""

    attention: Convolution
    mlp: Convolution

    def finish(self, block: Block, x_NE: Tensor, attended_ND: Tensor, delta_BMTG: Tensor) -> None:
        """Add the layer's attention and MLP to the residual stream in place, as `Block.finish` does without them.

        Args:
            delta_BMTG: from `attention.before` of the layer's normalised input.
        """
        ops = self.mlp.ops
        assert block.gate_up is not None
        assert block.down is not None
        x_NE += self.attention.after(ops.norm_project(attended_ND, None, 0.0, block.out), delta_BMTG)
        normed_NE = torch.empty_like(x_NE)
        ops.collect(x_NE, block.post_norm_E, block.eps, normed_NE, 0)
        u_NE, delta_BMTG = self.mlp.before(normed_NE, delta_BMTG.shape[1])
        inner_NI = ops.gate_up(u_NE, None, 0.0, block.gate_up, block.activation)
        x_NE += self.mlp.after(ops.norm_project(inner_NI, None, 0.0, block.down), delta_BMTG)
