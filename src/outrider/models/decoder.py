"""The native decoder: Llama 2/3, SmolLM2, Qwen2/2.5, Qwen3 and Mistral, on the five operations of `ops.py`.

One function reads any rows for any slots: a prompt chunk, the root of plain decoding, or the root and the tree of a
draft. What a row may see and where it is written is the `Placement`'s business, so the network itself is short:

    x  = embed(token)
    x += W_o attend(W_qkv norm(x))
    x += W_down (silu(W_gate norm(x)) * W_up norm(x))            for every layer
    logits = W_head norm(x)

Taps hand out the residual stream before a layer; see `outrider.target`.

Shapes: B slots, M rows of each, R = B * M, E hidden size, V vocabulary, F = taps * E.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.ops import AttentionShape, HeadNorm, Ops, Packed, Placement, Rope
from outrider.models.rope import rope_tables
from outrider.models.spec import DecoderSpec

__all__ = ["Decoder", "Output"]


class Output(NamedTuple):
    """Raw logits [B, M, V] and tapped states [B, M, F]; each None when not asked for."""

    logits_BMV: Tensor | None
    features_BMF: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Packed weights of one layer."""

    input_norm_E: Tensor
    qkv: Packed
    head_norm: HeadNorm | None
    shape: AttentionShape
    out: Packed
    post_norm_E: Tensor
    gate_up: Packed
    down: Packed


@final
class Decoder:
    """Weights in the layout of one back end, and the forward pass over a cache."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[str, Tensor],
        ops: Ops,
        device: torch.device | str = "cpu",
    ) -> None:
        """Pack `weights`, under their Hugging Face names."""
        self.spec = spec
        self.ops = ops
        self.device = torch.device(device)
        self.layers = [self._pack_layer(weights, index) for index in range(spec.num_layers)]
        self.embed_VE = weights["model.embed_tokens.weight"].to(device)
        self.norm_E = self._vector(weights["model.norm.weight"])
        self.head = ops.pack(weights["model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"])
        self._rope: Rope | None = None

    def keep(self, layers: Sequence[int]) -> "Decoder":
        """A shallower decoder that shares this one's weights and has only these layers, in that order."""
        cut = copy(self)
        cut.layers = [self.layers[index] for index in layers]
        windows = tuple(self.spec.windows[index] for index in layers)
        cut.spec = replace(self.spec, num_layers=len(cut.layers), windows=windows)
        return cut

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        packed = [self.head] + [p for layer in self.layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return self.embed_VE.nbytes + sum(p.num_bytes for p in packed)

    def rope(self, num_positions: int) -> Rope:
        """Rotary tables for at least that many positions, made once and kept."""
        if self._rope is None or self._rope.cos_PD.shape[0] < num_positions:
            tables = rope_tables(self.spec, num_positions, self.device)
            half = self.spec.head_dim // 2
            wide = torch.float64 if self.ops.activation_dtype == torch.float64 else torch.float32
            cos_PD, sin_PD = (table[:, :half].to(wide).contiguous() for table in tables)
            self._rope = Rope(cos_PD=cos_PD, sin_PD=sin_PD)
        return self._rope

    @torch.inference_mode()
    def __call__(
        self,
        tokens_BM: Tensor,
        placement: Placement,
        cache: KVCache,
        *,
        taps: tuple[int, ...] = (),
        want_logits: bool = True,
    ) -> Output:
        """Read the rows, write their keys and values into `cache`, and give what was asked for."""
        B, M = tokens_BM.shape
        rope = self.rope(cache.plan.num_positions)
        eps = self.spec.rms_norm_eps
        x_RE = self.embed_VE[tokens_BM.reshape(-1)].to(self.ops.activation_dtype)
        states: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if index in taps:
                states[index] = x_RE.clone()
            qkv_RQ = self.ops.norm_project(x_RE, layer.input_norm_E, eps, layer.qkv)
            keys_CHSD, values_CHSD = cache.keys_LCHSD[index], cache.values_LCHSD[index]
            near = placement.within(layer.shape.sliding_window)
            out_RD = self.ops.attend(qkv_RQ, layer.shape, rope, keys_CHSD, values_CHSD, near, layer.head_norm)
            self.ops.project_add(out_RD, layer.out, x_RE)
            inner_RI = self.ops.gate_up(x_RE, layer.post_norm_E, eps, layer.gate_up)
            self.ops.project_add(inner_RI, layer.down, x_RE)
        if len(self.layers) in taps:
            states[len(self.layers)] = self._final_norm(x_RE)
        logits_RV = self.ops.norm_project(x_RE, self.norm_E, eps, self.head) if want_logits else None
        features_RF = torch.cat([states[tap] for tap in taps], dim=-1) if taps else None
        return Output(
            None if logits_RV is None else logits_RV.view(B, M, -1),
            None if features_RF is None else features_RF.view(B, M, -1),
        )

    def _final_norm(self, x_RE: Tensor) -> Tensor:
        wide_RE = x_RE.to(torch.promote_types(x_RE.dtype, torch.float32))
        scale_R1 = torch.rsqrt(wide_RE.square().mean(-1, keepdim=True) + self.spec.rms_norm_eps)
        return (wide_RE * scale_R1 * self.norm_E).to(x_RE.dtype)

    def _pack_layer(self, weights: Mapping[str, Tensor], index: int) -> Layer:
        spec, ops = self.spec, self.ops
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        qkv_OE = torch.cat([weights[f"{attention}{part}_proj.weight"] for part in "qkv"])
        qkv_bias_O = torch.cat([weights[f"{attention}{part}_proj.bias"] for part in "qkv"]) if spec.qkv_bias else None
        head_norm = None
        if spec.qk_norm:
            query_D, key_D = (self._vector(weights[f"{attention}{part}_norm.weight"]) for part in "qk")
            head_norm = HeadNorm(query_D=query_D, key_D=key_D, eps=spec.rms_norm_eps)
        return Layer(
            input_norm_E=self._vector(weights[f"model.layers.{index}.input_layernorm.weight"]),
            qkv=ops.pack(qkv_OE, qkv_bias_O),
            head_norm=head_norm,
            shape=AttentionShape(
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                scale=spec.head_dim**-0.5,
                sliding_window=spec.windows[index],
            ),
            out=ops.pack(
                weights[f"{attention}o_proj.weight"], weights[f"{attention}o_proj.bias"] if spec.o_bias else None
            ),
            post_norm_E=self._vector(weights[f"model.layers.{index}.post_attention_layernorm.weight"]),
            gate_up=ops.pack_gate_up(weights[f"{mlp}gate_proj.weight"], weights[f"{mlp}up_proj.weight"]),
            down=ops.pack(weights[f"{mlp}down_proj.weight"]),
        )

    def _vector(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, self.ops.activation_dtype)
