"""One decoder layer on the operations of `ops/base.py`: what the target's layers and the layers of draft heads share.

    x += W_o attend(qkv)
    x += W_down (silu(W_gate norm(x)) * W_up norm(x))

The caller makes `qkv`: a decoder projects the norm of x, an EAGLE-3 head projects a token embedding and a feature side
by side.

Shapes: R rows, E hidden size, Q = (H + 2 * Hkv) * D, C slots, S cached positions, D head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from outrider.models.spec import DecoderSpec
from outrider.ops.base import AttentionShape, HeadNorm, Ops, Packed, Rope
from outrider.ops.quantised import Matrix, dense
from outrider.placement import Placement

__all__ = ["Block"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Packed weights of one layer."""

    input_norm_E: Tensor
    qkv: Packed
    head_norm: HeadNorm | None
    shape: AttentionShape
    out: Packed
    post_norm_E: Tensor
    gate_up: Packed
    down: Packed
    eps: float

    @classmethod
    def packed(
        cls,
        spec: DecoderSpec,
        weights: Mapping[str, Matrix],
        prefix: str,
        ops: Ops,
        device: torch.device | str,
        window: int | None = None,
    ) -> Self:
        """Pack the weights under `prefix` ("model.layers.0."), which have their Hugging Face names."""

        def vector(name: str) -> Tensor:
            return dense(weights[prefix + name]).to(device, ops.activation_dtype)

        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        # One product for queries, keys and values.
        qkv_OE = [weights[f"{attention}{part}_proj.weight"] for part in "qkv"]
        qkv_bias_O = dense([weights[f"{attention}{part}_proj.bias"] for part in "qkv"]) if spec.qkv_bias else None
        head_norm = None
        if spec.qk_norm:
            query_D, key_D = (vector(f"self_attn.{part}_norm.weight") for part in "qk")
            head_norm = HeadNorm(query_D=query_D, key_D=key_D, eps=spec.rms_norm_eps)
        return cls(
            input_norm_E=vector("input_layernorm.weight"),
            qkv=ops.pack(qkv_OE, qkv_bias_O),
            head_norm=head_norm,
            shape=AttentionShape(
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                scale=spec.head_dim**-0.5,
                sliding_window=window,
            ),
            out=ops.pack(
                weights[f"{attention}o_proj.weight"], dense(weights[f"{attention}o_proj.bias"]) if spec.o_bias else None
            ),
            post_norm_E=vector("post_attention_layernorm.weight"),
            gate_up=ops.pack_gate_up(weights[f"{mlp}gate_proj.weight"], weights[f"{mlp}up_proj.weight"]),
            down=ops.pack(weights[f"{mlp}down_proj.weight"]),
            eps=spec.rms_norm_eps,
        )

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return sum(part.num_bytes for part in (self.qkv, self.out, self.gate_up, self.down))

    def apply(
        self,
        ops: Ops,
        x_RE: Tensor,
        qkv_RQ: Tensor,
        rope: Rope,
        keys_CHSD: Tensor,
        values_CHSD: Tensor,
        placement: Placement,
    ) -> None:
        """Add attention and MLP to the residual stream `x_RE` in place; keys and values are written to the cache."""
        # Rows under a sliding window see the last `window` positions only.
        near = placement.within(self.shape.sliding_window)
        self.finish(ops, x_RE, ops.attend(qkv_RQ, self.shape, rope, keys_CHSD, values_CHSD, near, self.head_norm))

    def finish(self, ops: Ops, x_RE: Tensor, attended_RD: Tensor) -> None:
        """Add the projected attention, then the MLP, to the residual stream in place."""
        ops.project_add(attended_RD, self.out, x_RE)
        inner_RI = ops.gate_up(x_RE, self.post_norm_E, self.eps, self.gate_up)
        ops.project_add(inner_RI, self.down, x_RE)
