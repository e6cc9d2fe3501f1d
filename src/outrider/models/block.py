"""One decoder layer on the operations of `ops/base.py`: what the target's layers and the layers of draft heads share.

    x += W_o attend(qkv)
    x += W_down (silu(W_gate norm(x)) * W_up norm(x))

Gemma 3 has GELU for silu, and normalises what is added. A mixture of experts has many MLPs, of which each row takes a
few.

The caller makes `qkv`: a decoder projects the norm of x, an EAGLE-3 head projects a token embedding and a feature side
by side.

Shapes: R rows, E hidden size, Q = (H + 2 * Hkv) * D, C slots, S cached positions, D head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from outrider.models.spec import DecoderSpec, ExpertSpec
from outrider.ops.base import Activation, AttentionShape, HeadNorm, Ops, Rope
from outrider.ops.packed import Mlp, Packed, PackedExperts, Routing
from outrider.ops.quantised import Matrix, dense, reordered, rows_of
from outrider.placement import Placement

__all__ = ["Block", "norm_weight"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Packed weights of one layer.

    gate_up, down                  the MLP; None in a layer with experts
    attended_norm_E, down_norm_E   norms of what attention and MLP add, where a family has them (Gemma 3)
    """

    input_norm_E: Tensor
    qkv: Packed
    head_norm: HeadNorm | None
    shape: AttentionShape
    out: Packed
    post_norm_E: Tensor
    gate_up: Packed | None
    down: Packed | None
    experts: PackedExperts | None = None
    eps: float
    activation: Activation = "silu"
    attended_norm_E: Tensor | None = None
    down_norm_E: Tensor | None = None

    @classmethod
    def packed(
        cls,
        spec: DecoderSpec,
        weights: Mapping[str, Matrix],
        prefix: str,
        ops: Ops,
        device: torch.device | str,
        layer: int = 0,
    ) -> Self:
        """Pack the weights under `prefix` ("model.layers.0."), which have their Hugging Face names.

        Args:
            layer: the layer of `spec` that they are; its window and its mixture of experts may differ from others'.
        """
        experts, rotates = spec.experts_of(layer), spec.rotates(layer)

        def vector(name: str) -> Tensor:
            return norm_weight(spec, weights[prefix + name], ops.activation_dtype).to(device)

        attention, mlp = f"{prefix}self_attn.", f"{prefix}{spec.mlp_name}."
        # One product for queries, keys and values.
        parts = ("qkv",) if spec.fused else ("q", "k", "v")
        qkv_OE = [_paired(spec, part, weights[f"{attention}{part}_proj.weight"]) for part in parts]
        biases = [_paired(spec, part, weights[f"{attention}{part}_proj.bias"]) for part in parts if spec.qkv_bias]
        head_norm = None
        if spec.qk_norm:
            query_D, key_D = (vector(f"self_attn.{part}_norm.weight") for part in "qk")
            head_norm = HeadNorm(query_D=query_D, key_D=key_D, eps=spec.rms_norm_eps)
        elif spec.unit_heads and rotates:  # behind the rotation in Llama 4, which leaves lengths as they are
            ones_D = torch.ones(spec.head_dim, dtype=ops.activation_dtype, device=device)
            head_norm = HeadNorm(query_D=ones_D, key_D=ones_D, eps=spec.rms_norm_eps)
        return cls(
            input_norm_E=vector("input_layernorm.weight"),
            qkv=ops.pack(qkv_OE, dense(biases) if biases else None),
            head_norm=head_norm,
            shape=AttentionShape(
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                scale=spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
                sliding_window=spec.windows[layer],
                chunk=spec.chunk_of(layer),
            ),
            out=ops.pack(
                weights[f"{attention}o_proj.weight"], dense(weights[f"{attention}o_proj.bias"]) if spec.o_bias else None
            ),
            post_norm_E=vector(f"{'pre_feedforward' if spec.post_norms else 'post_attention'}_layernorm.weight"),
            gate_up=None if experts else ops.pack_gate_up(*_halves(spec, weights, mlp)),
            down=None if experts else ops.pack(weights[f"{mlp}down_proj.weight"]),
            experts=None if experts is None else _packed_experts(spec, ops, weights, prefix, experts),
            eps=spec.rms_norm_eps,
            activation=spec.activation,
            attended_norm_E=vector("post_attention_layernorm.weight") if spec.post_norms else None,
            down_norm_E=vector("post_feedforward_layernorm.weight") if spec.post_norms else None,
        )

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        parts = (self.qkv, self.out, self.gate_up, self.down, self.experts)
        return sum(part.num_bytes for part in parts if part is not None)

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
        self.finish(ops, x_RE, self.attended(ops, qkv_RQ, rope, keys_CHSD, values_CHSD, placement))

    def store(
        self, ops: Ops, qkv_RQ: Tensor, rope: Rope, keys_CHSD: Tensor, values_CHSD: Tensor, placement: Placement
    ) -> None:
        """Write keys and values to the cache, for rows whose output nobody reads."""
        ops.store(qkv_RQ, self.shape, rope, keys_CHSD, values_CHSD, placement, self.head_norm)

    def attended(
        self, ops: Ops, qkv_RQ: Tensor, rope: Rope, keys_CHSD: Tensor, values_CHSD: Tensor, placement: Placement
    ) -> Tensor:
        """Return what attention reads, before its projection; keys and values are written to the cache."""
        # rows under a sliding window see the last `window` positions only, others those of their chunk
        near = placement.within(self.shape.sliding_window, self.shape.chunk)
        if rope.growth_P is not None:
            ops.grow(qkv_RQ, self.shape.num_heads * self.shape.head_dim, rope.growth_P, placement)
        return ops.attend(qkv_RQ, self.shape, rope, keys_CHSD, values_CHSD, near, self.head_norm)

    def finish(self, ops: Ops, x_RE: Tensor, attended_RD: Tensor) -> None:
        """Add the projected attention, then the MLP, to the residual stream in place."""
        self._add(ops, attended_RD, self.out, self.attended_norm_E, x_RE)
        if self.experts is not None:
            ops.add_experts(x_RE, self.post_norm_E, self.eps, self.experts)
            return
        assert self.gate_up is not None
        assert self.down is not None
        inner_RI = ops.gate_up(x_RE, self.post_norm_E, self.eps, self.gate_up, self.activation)
        self._add(ops, inner_RI, self.down, self.down_norm_E, x_RE)

    def _add(self, ops: Ops, rows_RF: Tensor, packed: Packed, norm_E: Tensor | None, x_RE: Tensor) -> None:
        if norm_E is None:
            ops.project_add(rows_RF, packed, x_RE)
        else:
            ops.project_norm_add(rows_RF, packed, norm_E, self.eps, x_RE)


def _paired(spec: DecoderSpec, part: str, rows: Matrix) -> Matrix:
    """Return queries, keys and values with the two coordinates of a plane half a head apart, as operations rotate them.

    Both queries and keys are reordered, so no score changes. What does not rotate takes the planes behind.
    """
    D, turned = spec.head_dim, spec.rotary_dim
    if (turned == D and not spec.interleaved) or part == "v":
        return rows
    planes = torch.arange(turned).view(-1, 2).T if spec.interleaved else torch.arange(turned).view(2, -1)
    halves = planes, torch.arange(turned, D).view(2, -1)
    heads = {"q": spec.num_heads, "k": spec.num_kv_heads, "qkv": spec.num_heads + spec.num_kv_heads}[part]
    order_O = (torch.arange(heads)[:, None] * D + torch.cat(halves, dim=1).flatten()).flatten()
    return reordered(rows, torch.cat([order_O, torch.arange(len(order_O), rows.shape[0])]))


def _halves(spec: DecoderSpec, weights: Mapping[str, Matrix], mlp: str) -> tuple[Matrix, Matrix]:
    if not spec.fused:
        return weights[f"{mlp}gate_proj.weight"], weights[f"{mlp}up_proj.weight"]
    both, inner = weights[f"{mlp}gate_up_proj.weight"], spec.intermediate_size
    return rows_of(both, 0, inner), rows_of(both, inner, 2 * inner)


def _packed_experts(
    spec: DecoderSpec, ops: Ops, weights: Mapping[str, Matrix], prefix: str, experts: ExpertSpec
) -> PackedExperts:
    def mlp(name: str) -> Mlp:
        gate, up, down = (
            weights[f"{prefix}{spec.mlp_name}.{name}.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        return gate, up, down

    routing = Routing(experts.num_chosen, experts.normalised, experts.gated_input)
    mlps = (mlp(f"experts.{number}") for number in range(experts.num_experts))
    shared = mlp("shared_expert") if experts.shared_size else None
    return ops.pack_experts(weights[f"{prefix}{spec.router_name}.weight"], mlps, routing, shared)


def norm_weight(spec: DecoderSpec, weight: Matrix, dtype: torch.dtype) -> Tensor:
    """Return the weight of a norm as it multiplies; Gemma 3 stores it less one, and its sum is at least fp32."""
    if not spec.norm_offset:
        return dense(weight).to(dtype)
    return dense(weight).to(torch.promote_types(dtype, torch.float32)) + spec.norm_offset
