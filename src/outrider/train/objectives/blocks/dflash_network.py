"""The DFlash network as a trainable one, over packed rows of text and many blocks of each (arXiv 2602.06036).

A block of M slots stands at an anchor, which is the root of a step. Its slots see

    the context     the positions before the anchor, of its own text
    its own block   all slots, or in a causal network the earlier ones

and neither another block nor the anchor's own state. Context rows have keys and values alone, so a batch of A blocks
costs A * M rows beside one projection of every position.

Worked example: text x0 x1 x2 x3, anchor 2, M = 3: slots at positions 2, 3, 4 see context 0 and 1, and each other.

Parameters have the published names. Inference runs the same numbers through `outrider.models.blocks.dflash`; a test
holds both together.

Shapes: B rows, L positions, A blocks of a row, M slots of a block, X = A * M, E hidden size, F features, H = G * N
heads, G key/value heads, D head size.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outrider.models.blocks.dflash import DFlashSpec
from outrider.train.batch import Batch
from outrider.train.objectives.blocks.second import Convolved, Selector
from outrider.train.objectives.layers import Attention, Heads, Mlp, RMSNorm, Rotation, rotation

__all__ = ["Blocks", "DFlashTraining"]

CHUNK = 256
"""Slots whose scores are held at a time; with more of them, the backward pass recomputes the scores."""


class Blocks(NamedTuple):
    """The blocks of every row of a batch.

    anchors_BA   place of the anchor in the row; 0 for padding
    seen_BAL     bool, the context of each block
    """

    anchors_BA: Tensor
    seen_BAL: Tensor

    @classmethod
    def at(cls, batch: Batch, anchors_BA: Tensor, real_BA: Tensor) -> "Blocks":
        """Return blocks at these anchors; those that are not real see no context."""
        places_L = torch.arange(batch.tokens_BL.shape[1], device=anchors_BA.device)
        texts_BA1 = batch.segments_BL.gather(1, anchors_BA)[..., None]
        before_BAL = places_L < anchors_BA[..., None]
        return cls(anchors_BA, before_BAL & (batch.segments_BL[:, None] == texts_BA1) & real_BA[..., None])


@final
class Layer(nn.Module):
    """A decoder layer whose attention also reads the context."""

    def __init__(self, spec: DFlashSpec) -> None:
        super().__init__()
        width, eps = spec.decoder.hidden_size, spec.decoder.rms_norm_eps
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(spec.decoder)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = Mlp(spec.decoder)
        self.attention_conv, self.mlp_conv = (Convolved(spec) if spec.conv_kernel_size else None for _ in range(2))

    def forward(
        self, x_BXE: Tensor, context_BLE: Tensor, turned: tuple[Rotation, Rotation], seen_BAL: Tensor, is_causal: bool
    ) -> Tensor:
        def attend(normed_BXE: Tensor) -> Tensor:
            return self._attended(normed_BXE, context_BLE, turned, seen_BAL, is_causal)

        x_BXE = x_BXE + _around(self.attention_conv, self.input_layernorm(x_BXE), attend)
        return x_BXE + _around(self.mlp_conv, self.post_attention_layernorm(x_BXE), self.mlp)

    def _attended(
        self, x_BXE: Tensor, context_BLE: Tensor, turned: tuple[Rotation, Rotation], seen_BAL: Tensor, is_causal: bool
    ) -> Tensor:
        own = self.self_attn.heads(x_BXE, turned[1])
        keys_BLGD, values_BLGD = self.self_attn.keys_and_values(context_BLE, turned[0])
        A, M = seen_BAL.shape[1], x_BXE.shape[1] // seen_BAL.shape[1]
        step, parts = max(1, CHUNK // M), []
        for first in range(0, A, step):
            slots = slice(first * M, (first + step) * M)
            arguments = (
                Heads(*(part[:, slots] for part in own)),
                keys_BLGD,
                values_BLGD,
                seen_BAL[:, first : first + step],
                is_causal,
            )
            if step >= A:
                parts.append(_mixed(*arguments))
            else:
                parts.append(checkpoint(_mixed, *arguments, use_reentrant=False, preserve_rng_state=False))
        return self.self_attn.output(torch.cat(parts, dim=1))


def _around(convolved: Convolved | None, x_BXE: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a sublayer, between its convolutions if it has any."""
    out_BXE: Tensor = sublayer(x_BXE) if convolved is None else convolved(x_BXE, sublayer)
    return out_BXE


@final
class DFlashTraining(nn.Module):
    """Everything that is trained: fusion, layers, norms, selector. Embedding and output head are the target's."""

    def __init__(self, spec: DFlashSpec) -> None:
        super().__init__()
        assert all(window is None for window in spec.decoder.windows), "windows are not trained here"
        width, eps = spec.decoder.hidden_size, spec.decoder.rms_norm_eps
        self.spec = spec
        self.fc = nn.Linear(spec.features, width, bias=False)
        self.hidden_norm = RMSNorm(width, eps)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.decoder.num_layers))
        self.norm = RMSNorm(width, eps)
        self.candidate_selector = Selector(spec) if spec.selector_rank else None

    def forward(self, batch: Batch, features_BLF: Tensor, blocks: Blocks, embedding_VE: Tensor) -> Tensor:
        """Return the states of all slots after the final norm, [B, A, M, E]."""
        spec, (B, A), M = self.spec, blocks.anchors_BA.shape, self.spec.block_size
        roots_BA = batch.tokens_BL.gather(1, blocks.anchors_BA)
        tokens_BAM = torch.full((B, A, M), spec.mask_id, device=roots_BA.device)
        tokens_BAM[..., 0] = roots_BA
        slots_M = torch.arange(M, device=roots_BA.device)
        positions_BAM = batch.positions_BL.gather(1, blocks.anchors_BA)[..., None] + slots_M
        dtype = self.norm.weight.dtype
        turned = tuple(rotation(spec.decoder, at, dtype) for at in (batch.positions_BL, positions_BAM.flatten(1)))
        context_BLE = self.hidden_norm(self.fc(features_BLF.to(dtype)))
        x_BXE = embedding_VE[tokens_BAM.flatten(1)].to(dtype)
        for layer, is_causal in zip(self.layers, spec.causal, strict=True):
            x_BXE = layer(x_BXE, context_BLE, turned, blocks.seen_BAL, is_causal)
        states_BXE: Tensor = self.norm(x_BXE)
        return states_BXE.view(B, A, M, -1)


def _mixed(own: Heads, keys_BLGD: Tensor, values_BLGD: Tensor, seen_BAL: Tensor, is_causal: bool) -> Tensor:
    """Mix the values that each slot sees, [B, X, H, D]."""
    B, X, H, D = own.queries.shape
    A, L, G = *seen_BAL.shape[1:], keys_BLGD.shape[2]
    M, N = X // A, H // G
    q_BAMGND = own.queries.view(B, A, M, G, N, D) * D**-0.5
    keys_BAMGD, values_BAMGD = (part.view(B, A, M, G, D) for part in (own.keys, own.values))
    scores = torch.einsum("bamgnd,blgd->bgnaml", q_BAMGND, keys_BLGD)
    scores = scores.masked_fill(~seen_BAL[:, None, None, :, None], -torch.inf)
    own_scores = torch.einsum("bamgnd,bakgd->bgnamk", q_BAMGND, keys_BAMGD)
    if is_causal:
        later_MM = torch.ones(M, M, dtype=torch.bool, device=seen_BAL.device).triu(1)
        own_scores = own_scores.masked_fill(later_MM, -torch.inf)
    every = torch.cat([scores, own_scores], dim=-1)
    weights = every.softmax(-1, dtype=torch.promote_types(every.dtype, torch.float32)).to(q_BAMGND.dtype)
    out = torch.einsum("bgnaml,blgd->bamgnd", weights[..., :L], values_BLGD)
    out = out + torch.einsum("bgnamk,bakgd->bamgnd", weights[..., L:], values_BAMGD)
    return out.reshape(B, X, H, D)
