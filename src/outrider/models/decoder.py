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
from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.block import Block
from outrider.models.ops import Ops, Placement, Rope
from outrider.models.rope import rope_tables
from outrider.models.spec import DecoderSpec

__all__ = ["Decoder", "Output"]


class Output(NamedTuple):
    """Raw logits [B, M, V] and tapped states [B, M, F]; each None when not asked for."""

    logits_BMV: Tensor | None
    features_BMF: Tensor | None


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
        self.layers = [
            Block.packed(spec, weights, f"model.layers.{index}.", ops, device, spec.windows[index])
            for index in range(spec.num_layers)
        ]
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
        return self.embed_VE.nbytes + self.head.num_bytes + sum(layer.num_bytes for layer in self.layers)

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
            layer.apply(self.ops, x_RE, qkv_RQ, rope, cache.keys_LCHSD[index], cache.values_LCHSD[index], placement)
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

    def _vector(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, self.ops.activation_dtype)
