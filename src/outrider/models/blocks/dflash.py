"""The DFlash network (arXiv 2602.06036): a few decoder layers that draft a whole block of tokens in one pass.

A block is the root and copies of a mask token. Every layer takes the target's states of the text before the root as
further keys and values:

    c = norm(fc [h_1 ; ... ; h_A])                     context, one row per position before the root
    K = [W_k c ; W_k norm(x)]   V = [W_v c ; W_v norm(x)]   Q = W_q norm(x)        in each layer, x the block
    x = x + W_o attention(Q, K, V);   x = x + mlp(norm(x))
    logits of slot j = lm_head(norm(x_j))              the token j places after the root

Slots see the context and each other, in a causal layer earlier ones only. The cache keeps context alone. In DFlash-2,
attention and mlp stand between convolutions.

Worked example: text x0 x1 x2 r: context rows 0, 1, 2; slots r, m, m, m at positions 3 to 6 draft three tokens.

Shapes: R context rows, B slots of the batch, M rows of a block, N = B * M, E hidden size, F = A * the target's hidden
size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.models.block import Block
from outrider.models.blocks.convolution import CONVOLUTIONS, Convolution, Convolutions, convolution_shapes
from outrider.models.blocks.markov import CONFIDENCE, MARKOV
from outrider.models.blocks.selector import SELECTOR
from outrider.models.rope import KeptRope
from outrider.models.spec import DecoderSpec
from outrider.ops.select import choose_ops
from outrider.placement import Placement, place_block, place_context

__all__ = ["DFlashNetwork", "DFlashSpec", "default_layer_ids"]


def default_layer_ids(num_target_layers: int, num_layers: int) -> tuple[int, ...]:
    """Return the published choice: states after layers evenly spaced from 1 to n - 3, within a target of few layers.

    >>> default_layer_ids(24, 5)
    (2, 7, 12, 17, 22)
    """
    last = num_target_layers - 3
    if num_layers == 1:
        after = [num_target_layers // 2]
    else:
        after = [round(1 + place * (last - 1) / (num_layers - 1)) for place in range(num_layers)]
    return tuple(sorted(max(1, min(layer + 1, num_target_layers - 1)) for layer in after))


@dataclass(frozen=True, kw_only=True)
class DFlashSpec:
    """The config of a network.

    decoder             its layers: sizes, rotary positions, windows; `vocab_size` is the target's
    block_size          slots of a block that it was trained with, the root's among them
    mask_id             the mask token
    layer_ids           k, from 1, is the target's state before layer k, which is the state after layer k - 1
    target_hidden_size  the width of each of these states
    draft_vocab_size    columns of its output head
    drafts_at_root      the root's own slot drafts, so that a block drafts `block_size` tokens
    causal              True for each layer in which a slot sees no later slot
    markov_rank         rank of the bias from token to token (`markov.py`); 0 without one
    confidence_inputs   width of what the confidence head reads: the hidden size, or the rank more; 0 without one
    conv_kernel_size    slots that a convolution of DFlash-2 reads, and
    conv_group_size     channels that share its corrections (`convolution.py`); 0 without
    selector_rank       rank of its candidate selector, and
    selector_top_k      the candidates of a slot (`selector.py`); 0 without
    embedding_scale     factor of the block's embeddings
    output_scale        factor of the logits, and
    softcap             the bound that they approach after it; 0 for none
    """

    decoder: DecoderSpec
    block_size: int
    mask_id: int
    layer_ids: tuple[int, ...]
    target_hidden_size: int
    draft_vocab_size: int
    drafts_at_root: bool = False
    causal: tuple[bool, ...]
    markov_rank: int = 0
    confidence_inputs: int = 0
    conv_kernel_size: int = 0
    conv_group_size: int = 0
    selector_rank: int = 0
    selector_top_k: int = 0
    embedding_scale: float = 1.0
    output_scale: float = 1.0
    softcap: float = 0.0

    @property
    def features(self) -> int:
        """Width of the features, F."""
        return len(self.layer_ids) * self.target_hidden_size

    @property
    def first_slot(self) -> int:
        """The first slot that drafts."""
        return 0 if self.drafts_at_root else 1

    def feature_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the feature layers on a target of that depth: behind its last layer, the stream before its norm."""
        return tuple(num_layers + 1 if layer == num_layers else layer for layer in self.layer_ids)

    @property
    def chain_only(self) -> bool:
        """True if a drafted token depends on the one before it."""
        return bool(self.markov_rank or self.selector_rank)

    def scaled(self, logits_RK: Tensor) -> Tensor:
        """Return an output head's logits as the network's own: multiplied, and bounded softly."""
        if self.output_scale != 1.0:
            logits_RK = logits_RK * self.output_scale
        return (logits_RK / self.softcap).tanh() * self.softcap if self.softcap else logits_RK

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every trained tensor, under its published name."""
        width, vocab_size = self.decoder.hidden_size, self.decoder.vocab_size
        shapes = {
            name.removeprefix("model."): shape
            for name, shape in self.decoder.weight_shapes().items()
            if name.startswith(("model.layers.", "model.norm."))
        }
        shapes |= {"fc.weight": (width, self.features), "hidden_norm.weight": (width,)}
        if self.markov_rank:
            shapes |= {
                name: (size, self.markov_rank)
                for name, size in zip(MARKOV, (vocab_size, self.draft_vocab_size), strict=True)
            }
        if self.confidence_inputs:
            shapes |= dict(zip(CONFIDENCE, ((1, self.confidence_inputs), (1,)), strict=True))
        if self.conv_kernel_size:
            one = convolution_shapes(width, self.conv_kernel_size, self.conv_group_size)
            layers = range(self.decoder.num_layers)
            shapes |= {f"layers.{layer}.{name}": shape for layer in layers for name, shape in one.items()}
        if self.selector_rank:
            rank = self.selector_rank
            shapes |= dict(zip(SELECTOR, ((vocab_size, rank), (vocab_size, rank), (rank, width)), strict=True))
        return shapes


@final
class DFlashNetwork:
    """Packed weights of one network, without the output head.

    Args:
        weights: the tensors of `spec.shapes()`, in their own dtype.
        embedding_VE: the input tokens' embedding, the checkpoint's own or the target's.
        mask_E: the embedding of the mask's slots; None for the mask token's row.
        owns_embedding: the embedding counts as memory of the network.
        dtype: the packed weights'.
    """

    def __init__(
        self,
        spec: DFlashSpec,
        weights: Mapping[str, Tensor],
        *,
        embedding_VE: Tensor,
        mask_E: Tensor | None,
        owns_embedding: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device
        self.ops = ops = choose_ops(device, dtype)
        packer = ops.narrow()
        heads = (*MARKOV, *CONFIDENCE, *SELECTOR)
        cast = {name: weights[name].to(device, dtype) for name in spec.shapes() if name not in heads}
        self.blocks = [
            Block.packed(spec.decoder, cast, f"layers.{layer}.", packer, device, layer)
            for layer in range(spec.decoder.num_layers)
        ]
        self.convolutions = [
            Convolutions(*(Convolution(cast, f"layers.{layer}.{part}.", ops, packer) for part in CONVOLUTIONS))
            for layer in range(spec.decoder.num_layers if spec.conv_kernel_size else 0)
        ]
        self.fc = packer.pack(cast["fc.weight"])
        self.context_norm_E = cast["hidden_norm.weight"].to(ops.activation_dtype)
        self.norm_E = cast["norm.weight"].to(ops.activation_dtype)
        self.embedding_VE = embedding_VE.to(device)
        self.mask_E = None if mask_E is None else mask_E.to(device, ops.activation_dtype)
        self.owns_embedding = owns_embedding
        self._rope = KeptRope(spec.decoder, device, ops.activation_dtype)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights that are not the target's, in bytes."""
        own = self.embedding_VE.nbytes if self.owns_embedding else 0
        around = sum(part.num_bytes for parts in self.convolutions for part in parts)
        return sum(block.num_bytes for block in self.blocks) + around + self.fc.num_bytes + own

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        """Return the plan of the cache that it needs."""
        transposed, layers = self.ops.transposes_keys, self.spec.decoder
        return layers.cache_plan(num_slots, capacity, tail, self.dtype, transposed_keys=transposed)

    @torch.inference_mode()
    def fuse(self, features_RF: Tensor) -> Tensor:
        """Return the context rows [R, E] of the target's features."""
        features_RF = features_RF.to(self.device, self.ops.activation_dtype).contiguous()
        fused_RE = self.ops.norm_project(features_RF, None, 0.0, self.fc)
        context_RE = torch.empty_like(fused_RE)
        self.ops.collect(fused_RE, self.context_norm_E, self.spec.decoder.rms_norm_eps, context_RE, 0)
        return context_RE

    @torch.inference_mode()
    def read(self, cache: KVCache, slots: Sequence[int], counts: Sequence[int], context_RE: Tensor) -> None:
        """Commit the keys and values of the next `counts[b]` context rows of each slot."""
        if len(context_RE):
            self._run(cache, context_RE, place_context(cache, slots, counts), None, [])
        cache.extend(slots, counts)

    @torch.inference_mode()
    def draft(
        self, cache: KVCache, slots: Sequence[int], counts: Sequence[int], context_RE: Tensor, tokens_BM: Tensor
    ) -> Tensor:
        """Read context rows as `read` does, and a block of each slot behind them.

        Returns:
            The block's states after the final norm, [B, M, E].
        """
        context = place_context(cache, slots, counts) if len(context_RE) else None
        cache.extend(slots, counts)
        B, M = tokens_BM.shape
        free = place_block(cache, slots, M, is_causal=False)
        causal = place_block(cache, slots, M, is_causal=True) if any(self.spec.causal) else free
        places = [causal if is_causal else free for is_causal in self.spec.causal]
        x_NE = self._run(cache, context_RE, context, self._embed(tokens_BM), places)
        states_NE = torch.empty_like(x_NE)
        self.ops.collect(x_NE, self.norm_E, self.spec.decoder.rms_norm_eps, states_NE, 0)
        return states_NE.view(B, M, -1)

    def _embed(self, tokens_BM: Tensor) -> Tensor:
        x_BME = self.embedding_VE[tokens_BM].to(self.ops.activation_dtype)
        if self.mask_E is not None:
            x_BME[:, 1:] = self.mask_E
        return x_BME.flatten(0, 1) * self.spec.embedding_scale

    def _run(
        self,
        cache: KVCache,
        context_RE: Tensor,
        context: Placement | None,
        x_NE: Tensor | None,
        places: Sequence[Placement],
    ) -> Tensor:
        """Write the context's keys and values, and run the block, one product per layer for both; return the block."""
        ops, eps, R = self.ops, self.spec.decoder.rms_norm_eps, len(context_RE)
        rope = self._rope.reaching(0, beyond=cache.plan.rotary_positions)
        rows_XE = context_RE if x_NE is None else torch.cat([context_RE, x_NE])
        for layer, block in enumerate(self.blocks):
            kept = cache.keys_LCHSD[layer], cache.values_LCHSD[layer]
            around = self.convolutions[layer] if self.convolutions else None
            delta_BMTG: Tensor | None = None
            if x_NE is not None:
                ops.collect(x_NE, block.input_norm_E, eps, rows_XE[R:], 0)
                if around is not None:
                    num_slots = places[layer].positions_BM.shape[1]
                    rows_XE[R:], delta_BMTG = around.attention.before(rows_XE[R:], num_slots)
            # context rows were normalised once, by `fuse`
            qkv_XQ = ops.norm_project(rows_XE, None, 0.0, block.qkv)
            if context is not None:
                block.store(ops, qkv_XQ[:R], rope, *kept, context)
            if x_NE is None:
                continue
            attended_ND = block.attended(ops, qkv_XQ[R:], rope, *kept, places[layer])
            if around is None or delta_BMTG is None:
                block.finish(ops, x_NE, attended_ND)
            else:
                around.finish(block, x_NE, attended_ND, delta_BMTG)
        return rows_XE if x_NE is None else x_NE
