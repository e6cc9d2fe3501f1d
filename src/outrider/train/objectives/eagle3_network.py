"""The EAGLE-3 head as a trainable network, with the rollout of training-time test (arXiv 2503.01840, section 3.2).

Step 0 reads the target's fused features; step j reads, in the same slot t, its own output of step j - 1 and the token
after it, x_{t+1+j}, and predicts x_{t+2+j}. `layers.py` says which keys a slot sees. Only the first layer reads tokens.

Parameters have the published names (`midlayer.self_attn.q_proj.weight`, ...). Inference runs the same numbers through
`outrider.models.eagle3`; a test holds both together.

Shapes: B rows, L positions, E hidden size, F features, R rows, K columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from outrider.models.eagle3 import Eagle3Spec
from outrider.models.spec import DecoderSpec
from outrider.train.batch import Batch
from outrider.train.objectives.layers import Attention, Heads, Mlp, RMSNorm, Rollout, Rotation, rotation
from outrider.train.objectives.pard_layout import Layout

__all__ = ["Eagle3Network", "plain"]


def plain(layer: DecoderSpec, num_layers: int = 1) -> DecoderSpec:
    """Return Llama layers of the same sizes, without biases and head norms."""
    return replace(
        layer.dense(),
        family="llama",
        num_layers=num_layers,
        windows=(None,) * num_layers,
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )


@final
class Midlayer(nn.Module):
    """The first decoder layer; its attention reads token and state side by side."""

    def __init__(self, spec: Eagle3Spec) -> None:
        super().__init__()
        width, eps = spec.layer.hidden_size, spec.layer.rms_norm_eps
        self.norm_before_residual = spec.norm_before_residual
        self.input_layernorm = RMSNorm(width, eps)
        self.hidden_norm = RMSNorm(width, eps)
        self.self_attn = Attention(spec.layer, 2 * width)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = Mlp(spec.layer)

    def forward(self, embed_BLE: Tensor, state_BLE: Tensor, turned: Rotation, rollout: Rollout) -> Tensor:
        hidden_BLE = self.hidden_norm(state_BLE)
        pair_BLX = torch.cat([self.input_layernorm(embed_BLE), hidden_BLE], dim=-1)
        x_BLE = hidden_BLE if self.norm_before_residual else state_BLE
        x_BLE = x_BLE + self.self_attn.output(rollout.attend(self.self_attn.heads(pair_BLX, turned)))
        out: Tensor = x_BLE + self.mlp(self.post_attention_layernorm(x_BLE))
        return out


@final
class FurtherLayer(nn.Module):
    """A plain decoder layer behind the first."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = Mlp(spec)

    def forward(self, x_BLE: Tensor, turned: Rotation, rollout: Rollout) -> Tensor:
        heads: Heads = self.self_attn.heads(self.input_layernorm(x_BLE), turned)
        x_BLE = x_BLE + self.self_attn.output(rollout.attend(heads))
        out: Tensor = x_BLE + self.mlp(self.post_attention_layernorm(x_BLE))
        return out


@final
class Eagle3Network(nn.Module):
    """Everything that is trained: fusion, layers, final norm and output head."""

    def __init__(self, spec: Eagle3Spec) -> None:
        super().__init__()
        layer = spec.layer
        assert layer == plain(layer, layer.num_layers), "a head that is trained here has plain Llama layers"
        self.spec = spec
        self.fc = nn.Linear(spec.features, layer.hidden_size, bias=False)
        self.midlayer = Midlayer(spec)
        self.layers = nn.ModuleDict({str(further): FurtherLayer(layer) for further in range(1, layer.num_layers)})
        self.norm = RMSNorm(layer.hidden_size, layer.rms_norm_eps)
        self.lm_head = nn.Linear(layer.hidden_size, spec.draft_vocab_size, bias=False)
        sizes = [spec.target_hidden_size] * spec.num_feature_layers if spec.fc_norm else []
        self.fc_norm = nn.ModuleList(RMSNorm(size, layer.rms_norm_eps) for size in sizes)
        if spec.norm_before_fc:
            self.input_norm = RMSNorm(spec.features, layer.rms_norm_eps)
        if spec.mask_id is not None:
            self.mask_hidden = nn.Parameter(torch.zeros(1, 1, spec.features))

    def fuse(self, features_BLF: Tensor) -> Tensor:
        """Return the first states [B, L, E]."""
        if self.spec.fc_norm:
            parts = features_BLF.chunk(self.spec.num_feature_layers, dim=-1)
            features_BLF = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        if self.spec.norm_before_fc:
            features_BLF = self.input_norm(features_BLF)
        return linear(features_BLF, self.fc.weight)

    def steps(self, batch: Batch, features_BLF: Tensor, embedding_VE: Tensor, num_steps: int) -> Iterator[Tensor]:
        """Yield the output states [B, L, E] of each step of the rollout, step 0 first."""
        seen_BLL = batch.causal_BLL()
        rollouts = [Rollout(seen_BLL) for _ in range(self.spec.layer.num_layers)]
        state_BLE = self.fuse(features_BLF)
        for step in range(num_steps):
            embed_BLE = embedding_VE[batch.shifted(batch.tokens_BL, 1 + step)].to(state_BLE.dtype)
            turned = rotation(self.spec.layer, batch.positions_BL + step, self.norm.weight.dtype)
            state_BLE = self.read(embed_BLE, state_BLE, turned, rollouts)
            yield state_BLE

    def masked(self, batch: Batch, features_BLF: Tensor, embedding_VE: Tensor, layout: Layout) -> Tensor:
        """Return the output states [B, R, E] of the rows of a layout, pairs and masks behind them, in one pass."""
        spec, dtype = self.spec, self.norm.weight.dtype
        is_mask_BR, at_BR1 = layout.blocks_BR > 0, layout.anchors_BR[..., None]
        states_BLE = self.fuse(features_BLF)
        own_BRE = states_BLE.gather(1, at_BR1.expand(-1, -1, states_BLE.shape[-1]))
        states_BRE = torch.where(is_mask_BR[..., None], self.fuse(self.mask_hidden), own_BRE)
        tokens_BR = batch.shifted(batch.tokens_BL, 1).gather(1, layout.anchors_BR)
        tokens_BR = torch.where(is_mask_BR, spec.mask_id or 0, tokens_BR)
        positions_BR = batch.positions_BL.gather(1, layout.anchors_BR) + layout.blocks_BR
        visible_BRR = layout.visible_BRR(batch)
        rollouts = [Rollout(visible_BRR) for _ in range(spec.layer.num_layers)]
        turned = rotation(spec.layer, positions_BR, dtype)
        return self.read(embedding_VE[tokens_BR].to(dtype), states_BRE, turned, rollouts)

    def read(self, embed_BLE: Tensor, state_BLE: Tensor, turned: Rotation, rollouts: Sequence[Rollout]) -> Tensor:
        """Return the output states [B, L, E] of one step; each layer has its own `rollouts`."""
        x_BLE: Tensor = self.midlayer(embed_BLE, state_BLE, turned, rollouts[0])
        for layer, rollout in zip(self.layers.values(), rollouts[1:], strict=True):
            x_BLE = layer(x_BLE, turned, rollout)
        return self.norm(x_BLE) if self.spec.norm_output else x_BLE

    def predict(self, states_RE: Tensor) -> Tensor:
        """Return logits [R, K]."""
        logits: Tensor = self.lm_head(states_RE if self.spec.norm_output else self.norm(states_RE))
        return logits
