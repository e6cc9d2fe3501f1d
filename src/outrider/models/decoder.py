"""The native decoder: the Llama family, Qwen, Mistral, Phi and Gemma 3, on the operations of `ops/base.py`.

One function reads any rows for any slots: a prompt chunk, the root of plain decoding, or the root and the tree of a
draft. The `Placement` says what a row may see and where it is written, so the network itself is short:

    x  = embed(token)
    x += W_o attend(W_qkv norm(x))
    x += W_down (silu(W_gate norm(x)) * W_up norm(x))            for every layer, or a mixture of such MLPs
    logits = W_head norm(x)

Feature layers return the residual stream before a layer; see `outrider.target`.

Shapes: B slots, M rows of each, R = B * M, E hidden size, V vocabulary, F = feature layers * E.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.block import Block, norm_weight
from outrider.models.draft_network import DraftStep
from outrider.models.rope import KeptRope
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.ops.base import GraphCache, Ops, Packed, Result, Rope
from outrider.ops.quantised import Matrix, dense
from outrider.placement import Placement

__all__ = ["Decoder", "Output"]


class Output(NamedTuple):
    """Raw logits [B, M, V] and feature states [B, M, F]; each None when not asked for."""

    logits_BMV: Tensor | None
    features_BMF: Tensor | None


@final
class Decoder:
    """Weights in the layout of one back end, and the forward pass over a cache."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[str, Matrix],
        ops: Ops,
        device: torch.device | str = "cpu",
    ) -> None:
        """Pack `weights`, under their Hugging Face names."""
        self.spec = spec
        self.ops = ops
        self.device = torch.device(device)
        self.layers = self._packed_layers(spec, weights, ops)
        self.embed_VE = ops.table(weights["model.embed_tokens.weight"])
        if isinstance(self.embed_VE, Tensor):
            self.embed_VE = self.embed_VE.to(device)
        self.norm_E = norm_weight(spec, weights["model.norm.weight"], self.ops.activation_dtype).to(self.device)
        if not spec.tie_word_embeddings:
            self.head = ops.pack(weights["lm_head.weight"])
        else:
            self.head = self.embed_VE if isinstance(self.embed_VE, Packed) else ops.pack(self.embed_VE)
        self._set_ropes()
        self._special: tuple[int, Tensor] | None = None

    def keep(self, layers: Sequence[int]) -> "Decoder":
        """Make a shallower decoder that shares this one's weights and has only these layers, in that order."""
        cut = copy(self)
        cut.layers = [self.layers[index] for index in layers]
        cut.spec = self.spec.of_layers(layers)
        cut._ropes = [self._ropes[index] for index in layers]
        return cut

    def around(self, spec: DecoderSpec, weights: Mapping[str, Matrix]) -> "Decoder":
        """Put other layers and another final norm between this one's embedding and output head, which stay shared."""
        other = copy(self)
        other.spec = spec
        other.layers = self._packed_layers(spec, weights, self.ops.narrow())
        other.norm_E = norm_weight(spec, weights["model.norm.weight"], self.ops.activation_dtype).to(self.device)
        other._set_ropes()
        return other

    def _packed_layers(self, spec: DecoderSpec, weights: Mapping[str, Matrix], ops: Ops) -> list[Block]:
        return [
            Block.packed(spec, weights, f"model.layers.{layer}.", ops, self.device, layer)
            for layer in range(spec.num_layers)
        ]

    def _set_ropes(self) -> None:
        spec, dtype = self.spec, self.ops.activation_dtype
        whole = local = KeptRope(spec, self.device, dtype)
        if spec.local_rope is not None:
            local = KeptRope(replace(spec, rope=spec.local_rope), self.device, dtype)
        still = KeptRope(replace(spec, rope=RopeSpec(partial_rotary_factor=0.0)), self.device, dtype, spec.temperature)
        self._ropes = [
            still if not spec.rotates(layer) else whole if window is None else local
            for layer, window in enumerate(spec.windows)
        ]

    def read_as(self, token: int, vector_E: Tensor) -> None:
        """Read this token as a vector of its own, not as its row of the embedding, which may be shared."""
        self._special = token, self._vector(vector_E)

    def embed(self, tokens_R: Tensor) -> Tensor:
        """Look up the embeddings of tokens, the input of the first layer, [R, E]."""
        x_RE = self.ops.embed(self.embed_VE, tokens_R)
        if self._special is None:
            return x_RE
        token, vector_E = self._special
        # A mask token has a trained vector of its own (PARD).
        return torch.where((tokens_R == token)[:, None], vector_E, x_RE)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        table = self.embed_VE.nbytes if isinstance(self.embed_VE, Tensor) else self.embed_VE.num_bytes
        shared = self.embed_VE is self.head
        return (0 if shared else table) + self.head.num_bytes + sum(layer.num_bytes for layer in self.layers)

    def ropes(self, num_positions: int, beyond: int = 0) -> list[Rope]:
        """Return each layer's rotary tables for at least that many positions of a text and `beyond`, made once."""
        return [rope.reaching(num_positions, beyond) for rope in self._ropes]

    @torch.inference_mode()
    def __call__(
        self,
        tokens_BM: Tensor,
        placement: Placement,
        cache: KVCache,
        *,
        feature_layers: tuple[int, ...] = (),
        want_logits: bool = True,
        graph_cache: GraphCache | None = None,
    ) -> Output:
        """Read the rows, write their keys and values into `cache`, and return logits and features.

        Args:
            graph_cache: recorded forwards of this cache, empty at first; a back end replays those of the same shape.
        """
        B, M = tokens_BM.shape
        x_RE = self.embed(tokens_BM.view(-1))

        # a prompt is read for its keys and values, perhaps for features of earlier layers
        stores_only = graph_cache is None and not want_logits and max(feature_layers, default=0) < len(self.layers)

        def body(x_RE: Tensor, placement: Placement) -> Result:
            return self._read(x_RE, placement, cache, feature_layers, want_logits, stores_only=stores_only)

        if graph_cache is None or not self._fits_windows(placement):
            result = body(x_RE, placement)
        else:
            result = self.ops.replay(graph_cache, (feature_layers, want_logits), body, x_RE, placement)
        return Output(*(None if rows is None else rows.view(B, M, -1) for rows in result))

    def _fits_windows(self, placement: Placement) -> bool:
        """Return whether no row of a draft is beyond a window from another, so that every layer has this placement."""
        spans = {(layer.shape.sliding_window, layer.shape.chunk) for layer in self.layers}
        return all(placement.within(window, chunk) is placement for window, chunk in spans)

    def _read(
        self,
        x_RE: Tensor,
        placement: Placement,
        cache: KVCache,
        feature_layers: tuple[int, ...],
        want_logits: bool,
        *,
        stores_only: bool = False,
    ) -> Result:
        """Run all layers, by operations alone, so that a back end may record them.

        Args:
            stores_only: leave out of the last layer all but its keys and values.
        """
        ops, eps = self.ops, self.spec.rms_norm_eps
        capacity, beyond = cache.plan.capacity, cache.plan.num_positions - cache.plan.capacity
        ropes = self.ropes(capacity, beyond)
        if self.spec.embed_scale != 1:
            ops.scale(x_RE, self.spec.embed_scale)
        R, E = x_RE.shape
        features_RF = x_RE.new_empty(R, len(feature_layers) * E) if feature_layers else None

        def keep_features(index: int, norm_E: Tensor | None) -> None:
            for place in (place for place, wanted in enumerate(feature_layers) if wanted == index):
                assert features_RF is not None
                ops.collect(x_RE, norm_E, eps, features_RF, place * E)

        for index, layer in enumerate(self.layers):
            keep_features(index, None)
            qkv_RQ = ops.norm_project(x_RE, layer.input_norm_E, eps, layer.qkv)
            keys_CHSD, values_CHSD = cache.keys_LCHSD[index], cache.values_LCHSD[index]
            if stores_only and index == len(self.layers) - 1:
                layer.store(ops, qkv_RQ, ropes[index], keys_CHSD, values_CHSD, placement)
                return Result(None, features_RF)
            layer.apply(ops, x_RE, qkv_RQ, ropes[index], keys_CHSD, values_CHSD, placement)
        keep_features(len(self.layers), self.norm_E)
        keep_features(len(self.layers) + 1, None)
        return Result(ops.norm_project(x_RE, self.norm_E, eps, self.head) if want_logits else None, features_RF)

    def draft_step(self, cache: KVCache, head: Packed, ids_K: Tensor | None) -> DraftStep:
        """Return one read of a greedy chain with this output head or another."""
        ops, eps = self.ops, self.spec.rms_norm_eps

        def read(x_RE: Tensor, placement: Placement) -> Tensor:
            self._read(x_RE, placement, cache, (), want_logits=False)
            return x_RE

        return DraftStep(
            ops=ops,
            read=read,
            predict=lambda states_NE: ops.norm_project(states_NE, self.norm_E, eps, head),
            ids_K=ids_K,
            embedding_VE=self.embed_VE,
            reads_states=False,
        )

    def _vector(self, weight: Matrix) -> Tensor:
        return dense(weight).to(self.device, self.ops.activation_dtype)
