"""The trainable form of the prediction modules in `outrider.models.mtp`: plain layers, named as they are published.

`forward` gives the states y that the output head reads, for every slot t of packed texts and every depth j (from 0).

    several modules   module j at slot t: the state of module j - 1 at slot t, x_{t+1+j}, causal over its own keys
    one module        depth j of anchor t stands at slot t + j: its own state of depth j - 1, x_{t+1+j}

What may depth j of an anchor t see, with one module? At run time the root is x_{t+1}: the cache then holds the slots up
to t, read with the target's states, and behind them the drafter's own entries, slots t+1 .. t+j. So it is the depth-0
keys of the slots <= t, and of each later depth i <= j the anchor's own key alone (the training-time test of EAGLE-3,
arXiv 2503.01840, has the same mask):

    anchor 2 at depth 2, slot 4      depth 0: slots 0 1 2      depth 1: slot 3 of anchor 2      depth 2: itself

All anchors go through a depth in one pass; the diagonal costs one dot product a depth, and no mask of (j+1)L columns.

Shapes: B rows, L slots, E hidden size, G key/value heads, N query heads of each, D head size, K depths, P positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outrider.models.rope import rope_tables
from outrider.models.spec import DecoderSpec
from outrider.train.objectives.decoder import Mlp

__all__ = ["MtpInputs", "MtpNetwork", "attend_anchors"]


class Heads(NamedTuple):
    """Rotated queries [B, L, G, N, D], rotated keys and values [B, L, G, D]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class MtpInputs:
    """What the modules read.

    states_BLE     of the target
    embeds_KBLE    embedding of x_{t+1+j} for each depth j, any value where the text has ended
    positions_BL   of the slots in their texts
    causal_BLL     bool, which slots a slot sees; see `Batch.causal_BLL`
    """

    states_BLE: Tensor
    embeds_KBLE: Sequence[Tensor]
    positions_BL: Tensor
    causal_BLL: Tensor


def attend_anchors(
    queries_BLGND: Tensor, first: tuple[Tensor, Tensor], later: Sequence[tuple[Tensor, Tensor]], causal_BLL: Tensor
) -> Tensor:
    """Attention of one depth: all visible keys of depth 0, and of each later depth the anchor's own.

    Args:
        first: keys and values [B, L, G, D] of depth 0.
        later: the same of the depths 1 to this one, each at the anchor it belongs to; empty at depth 0.

    Returns:
        [B, L, G, N, D].
    """
    scale = queries_BLGND.shape[-1] ** -0.5
    length = causal_BLL.shape[1]
    narrow = queries_BLGND.dtype
    B, L, G, N, D = queries_BLGND.shape
    rows_BGYD = queries_BLGND.permute(0, 2, 3, 1, 4).reshape(B, G, N * L, D) * scale  # scores then lie as softmax reads
    scores = (rows_BGYD @ first[0].permute(0, 2, 3, 1)).view(B, G, N, L, length)
    scores = scores.masked_fill(~causal_BLL[:, None, None], -torch.inf)
    own = [torch.einsum("blgnd,blgd->bgnl", queries_BLGND, keys)[..., None] * scale for keys, _ in later]
    weights = torch.cat([scores, *own], -1).softmax(-1, dtype=torch.promote_types(narrow, torch.float32)).to(narrow)
    out_BGYD = weights[..., :length].reshape(B, G, N * L, length) @ first[1].transpose(1, 2)
    out_BLGND = out_BGYD.view(B, G, N, L, D).permute(0, 3, 1, 2, 4)
    for index, (_, values) in enumerate(later):
        out_BLGND = out_BLGND + torch.einsum("bgnl,blgd->blgnd", weights[..., length + index], values)
    return out_BLGND


class Norm(nn.RMSNorm):
    """RMSNorm in the precision of its weight, whatever the matrix products around it are computed in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Attention(nn.Module):
    """The projections of a Qwen2 attention."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, queries)
        self.k_proj = nn.Linear(spec.hidden_size, keys)
        self.v_proj = nn.Linear(spec.hidden_size, keys)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)


@final
class MtpLayer(nn.Module):
    """One module."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        width, eps = spec.hidden_size, spec.rms_norm_eps
        self.groups = (spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, spec.head_dim)
        self.hidden_layernorm = Norm(width, eps)
        self.token_layernorm = Norm(width, eps)
        self.input_proj = nn.Linear(2 * width, width, bias=False)
        self.input_layernorm = Norm(width, eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = Norm(width, eps)
        self.mlp = Mlp(spec)
        self.final_layernorm = Norm(width, eps)

    def fuse(self, states_BLE: Tensor, embeds_BLE: Tensor) -> Tensor:
        """The residual stream at its start, hidden half first."""
        pair = torch.cat([self.hidden_layernorm(states_BLE), self.token_layernorm(embeds_BLE)], -1)
        x_BLE: Tensor = self.input_proj(pair)
        return x_BLE

    def heads(self, x_BLE: Tensor, cos_BLD: Tensor, sin_BLD: Tensor) -> Heads:
        B, L, _ = x_BLE.shape
        G, N, D = self.groups
        normed, attn = self.input_layernorm(x_BLE), self.self_attn
        queries = rotate(attn.q_proj(normed).view(B, L, G * N, D), cos_BLD, sin_BLD)
        keys = rotate(attn.k_proj(normed).view(B, L, G, D), cos_BLD, sin_BLD)
        return Heads(queries.view(B, L, G, N, D), keys, attn.v_proj(normed).view(B, L, G, D))

    def finish(self, x_BLE: Tensor, attended_BLGND: Tensor) -> Tensor:
        """Output projection, MLP and final norm."""
        x_BLE = x_BLE + self.self_attn.o_proj(attended_BLGND.flatten(2))
        y_BLE: Tensor = self.final_layernorm(x_BLE + self.mlp(self.post_attention_layernorm(x_BLE)))
        return y_BLE


@final
class MtpNetwork(nn.Module):
    """All modules; `state_dict` has their published names without the leading `model.`."""

    def __init__(self, spec: DecoderSpec, num_modules: int) -> None:
        super().__init__()
        self.spec = spec
        self.mtp_layers = nn.ModuleList(MtpLayer(spec) for _ in range(num_modules))

    def forward(self, inputs: MtpInputs) -> list[Tensor]:
        """States [B, L, E] of every depth; row t of depth j predicts x_{t+2+j}."""
        return self._again(inputs) if len(self.mtp_layers) == 1 else self._in_turn(inputs)

    def _again(self, inputs: MtpInputs) -> list[Tensor]:
        layer = self._layer(0)
        states, out, seen = inputs.states_BLE, [], []
        for depth, embeds_BLE in enumerate(inputs.embeds_KBLE):
            slots_BL = inputs.positions_BL + depth
            x_BLE = layer.fuse(states, started(embeds_BLE, slots_BL))
            heads = layer.heads(x_BLE, *self._rotation(slots_BL, x_BLE.dtype))
            seen.append((heads.keys, heads.values))
            states = layer.finish(
                x_BLE, recomputed(attend_anchors, heads.queries, seen[0], seen[1:], inputs.causal_BLL)
            )
            out.append(states)
        return out

    def _in_turn(self, inputs: MtpInputs) -> list[Tensor]:
        states, out = inputs.states_BLE, []
        rotation = self._rotation(inputs.positions_BL, states.dtype)
        for index, embeds_BLE in enumerate(inputs.embeds_KBLE):
            layer = self._layer(index)
            x_BLE = layer.fuse(states, started(embeds_BLE, inputs.positions_BL))
            heads = layer.heads(x_BLE, *rotation)
            own = (heads.keys, heads.values)
            mixed = recomputed(attend_anchors, heads.queries, own, (), inputs.causal_BLL)
            states = layer.finish(x_BLE, mixed)
            out.append(states)
        return out

    def _layer(self, index: int) -> MtpLayer:
        layer = self.mtp_layers[index]
        assert isinstance(layer, MtpLayer)
        return layer

    def _rotation(self, positions_BL: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        tables = rope_tables(self.spec, int(positions_BL.max()) + 1, positions_BL.device)
        half = self.spec.head_dim // 2
        wide = torch.promote_types(dtype, torch.float32)
        return tables.cos_PD[:, :half].to(wide)[positions_BL], tables.sin_PD[:, :half].to(wide)[positions_BL]


SCORES_KEPT = {"cuda": 1 << 27}
"""Attention scores of a depth that are kept for the backward pass; none elsewhere."""


def recomputed(function: Callable[..., Any], queries_BLGND: Tensor, *arguments: Any) -> Any:
    """Attend, and once more in the backward pass rather than keep the scores, where they are many."""
    B, L, G, N, _ = queries_BLGND.shape
    if not torch.is_grad_enabled() or SCORES_KEPT.get(queries_BLGND.device.type, 0) >= B * G * N * L * L:
        return function(queries_BLGND, *arguments)
    return checkpoint(function, queries_BLGND, *arguments, use_reentrant=False, preserve_rng_state=False)


def started(embeds_BLE: Tensor, slots_BL: Tensor) -> Tensor:
    """The embeddings, zero at slot 0."""
    return embeds_BLE * (slots_BL > 0)[..., None]


def rotate(x_BLHD: Tensor, cos_BLD: Tensor, sin_BLD: Tensor) -> Tensor:
    """Rotary positions; the two halves of a head are the coordinates."""
    left, right = x_BLHD.to(cos_BLD.dtype).chunk(2, dim=-1)
    cos, sin = cos_BLD[:, :, None], sin_BLD[:, :, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x_BLHD.dtype)
