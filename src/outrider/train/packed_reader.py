"""The target's features of packed rows in one forward, for training on a GPU.

Reading text by text pads every text to the longest of its chunk, fills a cache that nobody reads again, and has a new
shape each time, for which attention kernels are planned anew. Here the rows of a training batch are read as they are:
one shape, no cache, and attention by PyTorch's fused kernel under one mask for all layers.

The numbers are those of decoding up to rounding, so this is not used where decoding is exact to the bit (on the CPU).

Shapes: B rows, L positions, R = B * L, E hidden size, F features, Q = (H + 2 * G) * D, H query heads, G key/value
heads, D head size.
"""

from typing import final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from outrider.models.block import Block
from outrider.models.decoder import Decoder
from outrider.ops.base import Rope
from outrider.ops.torch import rms_norm, rotate
from outrider.train.batch import Batch

__all__ = ["PackedReader"]


@final
class PackedReader:
    """A reader of the feature states of a batch.

    Args:
        feature_layers: see `outrider.target`.
        max_tokens: the longest text.
        dtype: dtype of the result.
    """

    def __init__(self, decoder: Decoder, feature_layers: tuple[int, ...], max_tokens: int, dtype: torch.dtype) -> None:
        self.decoder = decoder
        self.feature_layers = feature_layers
        self.dtype = dtype
        self._num_positions = max_tokens

    @torch.no_grad()
    def read(self, batch: Batch) -> Tensor:
        """Return the features [B, L, F] of every position; those of padding mean nothing."""
        decoder, ops, eps = self.decoder, self.decoder.ops, self.decoder.spec.rms_norm_eps
        x_RE = ops.embed(decoder.embed_VE, batch.tokens_BL.flatten())
        if decoder.spec.embed_scale != 1:
            ops.scale(x_RE, decoder.spec.embed_scale)
        R, E = x_RE.shape
        features_RF = x_RE.new_empty(R, len(self.feature_layers) * E)
        spans = {layer.shape: (layer.shape.sliding_window, layer.shape.chunk) for layer in decoder.layers}
        biases = {span: _bias(batch, *span, x_RE.dtype) for span in {*spans.values()}}
        ropes = decoder.ropes(self._num_positions)
        for index in range(len(decoder.layers) + 1):
            is_end = index == len(decoder.layers)
            for place in (place for place, feature_layer in enumerate(self.feature_layers) if feature_layer == index):
                ops.collect(x_RE, decoder.norm_E if is_end else None, eps, features_RF, place * E)
            if not is_end:
                layer = decoder.layers[index]
                qkv_RQ = ops.norm_project(x_RE, layer.input_norm_E, eps, layer.qkv)
                bias = biases[spans[layer.shape]]
                layer.finish(ops, x_RE, _attend(layer, qkv_RQ, ropes[index], batch.positions_BL, bias))
        return features_RF.view(*batch.tokens_BL.shape, -1).to(self.dtype)


def _bias(batch: Batch, window: int | None, chunk: int | None, dtype: torch.dtype) -> Tensor:
    """Return 0 where a row sees a column of its text, minus infinity elsewhere: [B, 1, L, L]."""
    seen_BLL = batch.causal_BLL()
    if window is not None:
        seen_BLL = seen_BLL & (batch.positions_BL[:, :, None] - batch.positions_BL[:, None, :] < window)
    if chunk is not None:
        seen_BLL = seen_BLL & (batch.positions_BL[:, :, None] // chunk == batch.positions_BL[:, None, :] // chunk)
    bias_BLL = torch.zeros(seen_BLL.shape, dtype=dtype, device=seen_BLL.device)
    return bias_BLL.masked_fill_(~seen_BLL, -torch.inf)[:, None]


def _attend(layer: Block, qkv_RQ: Tensor, rope: Rope, positions_BL: Tensor, bias_B1LL: Tensor) -> Tensor:
    H, G, D = layer.shape.num_heads, layer.shape.num_kv_heads, layer.shape.head_dim
    qkv_BLHD = qkv_RQ.view(*positions_BL.shape, H + 2 * G, D)
    q_BLHD, k_BLGD, v_BLGD = torch.split(qkv_BLHD, [H, G, G], dim=2)
    if layer.head_norm is not None:
        q_BLHD = rms_norm(q_BLHD, layer.head_norm.query_D, layer.head_norm.eps)
        k_BLGD = rms_norm(k_BLGD, layer.head_norm.key_D, layer.head_norm.eps)
    q_BLHD, k_BLGD = torch.split(rotate(torch.cat([q_BLHD, k_BLGD], dim=2), rope, positions_BL), [H, G], dim=2)
    if rope.growth_P is not None:
        q_BLHD = q_BLHD * rope.growth_P[positions_BL][:, :, None, None].to(q_BLHD.dtype)
    # every fast kernel takes as many key heads as query heads
    k_BLHD, v_BLHD = (part.repeat_interleave(H // G, dim=2) for part in (k_BLGD, v_BLGD))
    q, k, v = (part.transpose(1, 2) for part in (q_BLHD, k_BLHD, v_BLHD))
    out_BHLD = scaled_dot_product_attention(q, k, v, bias_B1LL, scale=layer.shape.scale)
    return out_BHLD.transpose(1, 2).reshape(len(qkv_RQ), H * D)
