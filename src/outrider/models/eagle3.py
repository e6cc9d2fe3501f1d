"""The EAGLE-3 head (Li et al., arXiv 2503.01840): a decoder layer that reads a token and a feature side by side.

The target's states before three of its layers are fused into one, g. Slot t reads g of position t and the embedding e
of the token after it, and predicts the token after that one:

    g = fc [h_low ; h_mid ; h_high]                   while drafting, the head's own last output
    a = [norm(e) ; norm(g)]                           twice the hidden size, which only q, k and v read
    x = g + attention(a);   x = x + mlp(norm(x))      the residual stream starts at g
    further layers are plain ones on x
    logits = lm_head(norm(x))                         x itself, before the norm, is the next g

The output head has columns for the most frequent tokens; `d2t` is each column's token id less the column's number.
Slot t sits at rotary position t. `Eagle3Spec` lists the variants.

Worked example: with d2t = [0, 4, 4], column 1 stands for token 5 and column 2 for token 6.

Shapes: R rows, E hidden size of the head, F = A * the target's hidden size, V vocabulary, K columns, A feature layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from outrider.cache import CachePlan, KVCache
from outrider.models.block import Block
from outrider.models.draft_network import DraftStep, Reading
from outrider.models.recurrent import RecurrentHead, below, run
from outrider.models.rope import KeptRope
from outrider.models.spec import DecoderSpec
from outrider.ops.base import GraphCache, Result, Rope
from outrider.ops.select import choose_ops
from outrider.placement import Placement

__all__ = ["LAYER", "MASK", "Eagle3Head", "Eagle3Spec", "default_layer_ids", "layer_name"]

LAYER = "midlayer."
"""Name of the first layer, which reads token and feature."""
MASK = "mask_hidden"
"""Name of the features of a masked slot."""
NUM_FEATURE_LAYERS = 3


def layer_name(layer: int) -> str:
    """Return the prefix of a layer's tensors.

    >>> layer_name(0), layer_name(1)
    ('midlayer.', 'layers.1.')
    """
    return f"layers.{layer}." if layer else LAYER


def default_layer_ids(num_layers: int) -> tuple[int, ...]:
    """Return the published choice, the states before layers 2, n // 2 and n - 3, within a target of few layers.

    >>> default_layer_ids(28), default_layer_ids(2)
    ((2, 14, 25), (0, 1, 1))
    """
    return tuple(sorted(min(max(layer, 0), num_layers - 1) for layer in (2, num_layers // 2, num_layers - 3)))


@dataclass(frozen=True, kw_only=True)
class Eagle3Spec:
    """The config of a head.

    layer               its decoder layers: number, sizes, rotary positions; `vocab_size` is the target's
    draft_vocab_size    K
    target_hidden_size  the width of each fused state
    layer_ids           k is the state before layer k; None for the default, which depends on the target's depth
    reads_normed        k = number of layers is the state behind the final norm, and not the stream that enters it
    has_fc              states are fused; without, the one state that is read is g itself
    mask_id             the token of masked slots, which `mask_hidden` gives features to; None without them
    norm_before_residual, norm_before_fc, fc_norm, norm_output
                        the residual starts at norm(g); the concatenated states are normalised; each of them is;
                        norm(x) is the next g
    """

    layer: DecoderSpec
    draft_vocab_size: int
    target_hidden_size: int
    layer_ids: tuple[int, ...] | None = None
    reads_normed: bool = False
    has_fc: bool = True
    mask_id: int | None = None
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False

    @property
    def num_feature_layers(self) -> int:
        return NUM_FEATURE_LAYERS if self.layer_ids is None else len(self.layer_ids)

    @property
    def features(self) -> int:
        """Width of the features, F."""
        return self.num_feature_layers * self.target_hidden_size

    def feature_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the feature layers on a target of that depth; behind its last layer, see `outrider.target`."""
        if self.layer_ids is None:
            return default_layer_ids(num_layers)
        last = num_layers if self.reads_normed else num_layers + 1
        return tuple(last if layer == num_layers else layer for layer in self.layer_ids)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every trained tensor, under its published name."""
        layer, width = self.layer, self.layer.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in layer.weight_shapes().items():
            if not name.startswith("model.layers."):
                continue
            name = name.removeprefix("model.").replace("layers.0.", LAYER)
            reads_both = name.startswith(LAYER) and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            shapes[name] = (shape[0], 2 * width) if reads_both else shape
        shapes |= {f"{LAYER}hidden_norm.weight": (width,), "norm.weight": (width,)}
        if self.has_fc:
            shapes["fc.weight"] = (width, self.features)
        if self.mask_id is not None:
            shapes[MASK] = (1, 1, self.features)
        if self.fc_norm:
            shapes |= {
                f"fc_norm.{feature_layer}.weight": (self.target_hidden_size,)
                for feature_layer in range(self.num_feature_layers)
            }
        if self.norm_before_fc:
            shapes["input_norm.weight"] = (self.features,)
        return shapes | {"lm_head.weight": (self.draft_vocab_size, width)}


@final
class Eagle3Head(RecurrentHead):
    """Packed weights of one head.

    Args:
        weights: the tensors of `spec.shapes()`; in their own dtype.
        embedding_VE: the input tokens' embedding, the checkpoint's own or the target's.
        owns_embedding: the embedding counts as memory of the head.
        ids_K: target ids of the columns, None if column k is token k.
        feature_layers: the target's hidden states to fuse.
        dtype: the packed weights'.
    """

    def __init__(
        self,
        spec: Eagle3Spec,
        weights: Mapping[str, Tensor],
        *,
        embedding_VE: Tensor,
        owns_embedding: bool,
        ids_K: Tensor | None,
        feature_layers: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device
        self.ops = ops = choose_ops(device, dtype)
        cast = {name: weights[name].to(device, dtype) for name in spec.shapes()}
        packer = ops.narrow()
        self.block, *self.further = (
            Block.packed(spec.layer, cast, layer_name(layer), packer, device, layer)
            for layer in range(spec.layer.num_layers)
        )
        self.fc = packer.pack(cast["fc.weight"]) if spec.has_fc else None
        self.lm_head = ops.narrow().pack(cast["lm_head.weight"])
        self.embedding_VE = embedding_VE.to(device)
        self.owns_embedding = owns_embedding
        self._feature_layers = feature_layers
        self._ids_K = None if ids_K is None else ids_K.to(device)
        wide = {name: weight.to(ops.activation_dtype) for name, weight in cast.items() if weight.dim() == 1}
        self.norm_E = wide["norm.weight"]
        self.hidden_norm_E = wide[f"{LAYER}hidden_norm.weight"]
        self.input_norm_F = wide.get("input_norm.weight")
        self.fc_norms_AE = (
            torch.stack([wide[f"fc_norm.{feature_layer}.weight"] for feature_layer in range(spec.num_feature_layers)])
            if spec.fc_norm
            else None
        )
        self._rope = KeptRope(spec.layer, device, ops.activation_dtype)
        self.mask_1E = None if spec.mask_id is None else self.fuse(cast[MASK].flatten(0, 1))
        """Input state of a masked slot (P-EAGLE)."""

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self._feature_layers

    @property
    def windows(self) -> tuple[int | None, ...]:
        return self.spec.layer.windows

    @property
    def ids_K(self) -> Tensor | None:
        return self._ids_K

    @property
    def num_bytes(self) -> int:
        own = self.embedding_VE.nbytes if self.owns_embedding else 0
        fc = 0 if self.fc is None else self.fc.num_bytes
        layers = sum(block.num_bytes for block in (self.block, *self.further))
        return layers + fc + self.lm_head.num_bytes + own

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        transposed, layers = self.ops.transposes_keys, self.spec.layer
        return layers.cache_plan(num_slots, capacity, tail, self.dtype, transposed_keys=transposed)

    @torch.inference_mode()
    def fuse(self, features_RF: Tensor) -> Tensor:
        features_RF = features_RF.to(self.device, self.ops.activation_dtype).contiguous()
        if self.fc_norms_AE is not None:
            features_RAE = features_RF.view(-1, *self.fc_norms_AE.shape)
            normalised_RAE = rms_norm(features_RAE, features_RAE.shape[-1:], eps=self.block.eps)
            features_RF = (normalised_RAE * self.fc_norms_AE).flatten(1)
        if self.fc is None:
            return features_RF
        return self.ops.norm_project(features_RF, self.input_norm_F, self.block.eps, self.fc)

    @torch.inference_mode()
    def read(
        self,
        states_RE: Tensor,
        tokens_R: Tensor,
        placement: Placement,
        cache: KVCache,
        *,
        num_predicted: int = 0,
        graph_cache: GraphCache | None = None,
    ) -> Reading:
        def body(both_RE: Tensor, placement: Placement) -> Result:
            out_RE = self._layers(both_RE, placement, cache)
            return Result(self.predict(out_RE[len(out_RE) - num_predicted :]) if num_predicted else None, out_RE)

        both_RE = self.inputs(states_RE, tokens_R, placement)
        return run(self.ops, graph_cache, num_predicted, body, both_RE, placement)

    @torch.inference_mode()
    def store(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement, cache: KVCache) -> None:
        self._layers(self.inputs(states_RE, tokens_R, placement), placement, cache, stores_only=True)

    def inputs(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement) -> Tensor:
        return below(self.embedding_VE[tokens_R], states_RE, self.ops.activation_dtype)

    def draft_step(self, cache: KVCache) -> DraftStep:
        return DraftStep(
            ops=self.ops,
            read=lambda both_RE, placement: self._layers(both_RE, placement, cache),
            predict=self.predict,
            ids_K=self.ids_K,
            embedding_VE=self.embedding_VE,
            reads_states=True,
        )

    def _layers(self, both_RE: Tensor, placement: Placement, cache: KVCache, *, stores_only: bool = False) -> Tensor:
        """Run the layers, by operations alone, so that a back end may record them.

        Args:
            stores_only: leave out of the last layer what only outputs need.
        """
        ops, eps, (rows, E) = self.ops, self.block.eps, both_RE.shape
        embedded_RE, states_RE = both_RE[: rows // 2], both_RE[rows // 2 :]
        pair_RF, x_RE = both_RE.new_empty(rows // 2, 2 * E), torch.empty_like(states_RE)
        ops.collect(embedded_RE, self.block.input_norm_E, eps, pair_RF, 0)
        ops.collect(states_RE, self.hidden_norm_E, eps, pair_RF, E)
        ops.collect(states_RE, self.hidden_norm_E if self.spec.norm_before_residual else None, eps, x_RE, 0)
        # Both halves are normalised already, so the projection applies no norm.
        qkv_RQ = ops.norm_project(pair_RF, None, 0.0, self.block.qkv)
        rope = self._tables(cache.plan.rotary_positions)
        for layer, block in enumerate((self.block, *self.further)):
            if layer:
                qkv_RQ = ops.norm_project(x_RE, block.input_norm_E, eps, block.qkv)
            kept = cache.keys_LCHSD[layer], cache.values_LCHSD[layer]
            if stores_only and layer == len(self.further):
                block.store(ops, qkv_RQ, rope, *kept, placement)
                return x_RE
            block.apply(ops, x_RE, qkv_RQ, rope, *kept, placement)
        out_RE = x_RE
        if self.spec.norm_output:
            out_RE = torch.empty_like(x_RE)
            ops.collect(x_RE, self.norm_E, eps, out_RE, 0)
        return out_RE

    @torch.inference_mode()
    def predict(self, states_RE: Tensor) -> Tensor:
        norm_E = None if self.spec.norm_output else self.norm_E
        return self.ops.norm_project(states_RE.contiguous(), norm_E, self.block.eps, self.lm_head)

    def _tables(self, num_positions: int) -> Rope:
        """Return rotary tables, made once; past a dynamic scaling's limit, where only drafts depend on them, plain."""
        return self._rope.reaching(0, beyond=num_positions)
