"""The trainable layers that networks share: norm, rotary positions, attention projections, MLP, training-time test.

A drafter reads its own outputs at run time, so it is trained on them (training-time test, arXiv 2503.01840, section
3.2; FastMTP trains one prediction module the same way). `Rollout` is its attention mask. After committed text up to t
and j drafted tokens, run time shows

    slot t at step j    the step-0 keys of slots 0..t of its text, and its own keys of steps 1..j

So the scores of step j are one causal L x L block and j numbers per slot; never a matrix over all steps. Keys of step j
stand at rotary position t + j.

Worked example: slot 2 at step 2 sees step-0 slots 0, 1, 2 at positions 0, 1, 2, and itself at positions 3 and 4.

Parameters have their Hugging Face names. Inference runs the same numbers through `outrider.models`; tests compare both.

Shapes: B rows, L positions, E hidden size, H = G * N heads, G key/value heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from outrider.models.rope import rope_tables
from outrider.models.spec import DecoderSpec

__all__ = ["Attention", "Heads", "Mlp", "RMSNorm", "Rollout", "Rotation", "draw_weights", "rotation"]

CHUNKS = {"cpu": 256, "cuda": 1024}
"""Query rows whose scores are held at a time; with more rows, the backward pass recomputes the scores."""


@final
class RMSNorm(nn.RMSNorm):
    """RMSNorm, computed in the precision of its weight; the result has the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


@final
class Mlp(nn.Module):
    """The gated feed-forward layer: W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Rotation(NamedTuple):
    """cos and sin [B, L, 1, D / 2] of some positions, in fp32 or wider."""

    cos: Tensor
    sin: Tensor

    def turn(self, x_BLHD: Tensor) -> Tensor:
        """Rotate heads; the two halves of a head are the coordinates."""
        left, right = x_BLHD.to(self.cos.dtype).chunk(2, dim=-1)
        turned = torch.cat([left * self.cos - right * self.sin, right * self.cos + left * self.sin], dim=-1)
        return turned.to(x_BLHD.dtype)


def rotation(spec: DecoderSpec, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
    """Return the rotation of these positions, in fp32 or in `dtype` if that is wider."""
    is_dynamic = spec.rope.type == "dynamic"
    limit = spec.max_position_embeddings if is_dynamic else int(positions_BL.max()) + 1
    rows_BL = positions_BL.clamp(max=limit - 1)  # dynamic scaling has no positions beyond; nothing is learnt there
    half, wide = spec.head_dim // 2, torch.promote_types(dtype, torch.float32)
    tables = rope_tables(spec, limit, positions_BL.device)
    return Rotation(*(table[:, :half].to(wide)[rows_BL][:, :, None] for table in tables))


class Heads(NamedTuple):
    """Rotated queries [B, L, H, D] and keys [B, L, G, D], and values [B, L, G, D]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


@final
class Attention(nn.Module):
    """The projections of grouped-query attention.

    Args:
        num_inputs: width of the input; by default the hidden size.
    """

    def __init__(self, spec: DecoderSpec, num_inputs: int | None = None) -> None:
        super().__init__()
        self.shape = (-1, spec.head_dim)
        width, keys = num_inputs or spec.hidden_size, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(width, spec.num_heads * spec.head_dim, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(width, keys, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(width, keys, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.hidden_size, bias=spec.o_bias)
        self.has_head_norm = spec.qk_norm
        if spec.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(spec.head_dim, spec.rms_norm_eps) for _ in range(2))

    def heads(self, x_BLX: Tensor, turned: Rotation) -> Heads:
        """Project, normalise and rotate."""
        q = self.q_proj(x_BLX).unflatten(-1, self.shape)
        if self.has_head_norm:
            q = self.q_norm(q)
        return Heads(turned.turn(q), *self.keys_and_values(x_BLX, turned))

    def keys_and_values(self, x_BLX: Tensor, turned: Rotation) -> tuple[Tensor, Tensor]:
        """Return rotated keys and values [B, L, G, D] of rows that are not queried from."""
        k, v = (part(x_BLX).unflatten(-1, self.shape) for part in (self.k_proj, self.v_proj))
        if self.has_head_norm:
            k = self.k_norm(k)
        return turned.turn(k), v

    def output(self, mixed_BLHD: Tensor) -> Tensor:
        """Project the mixed values back to the hidden size, [B, L, E]."""
        out_BLE: Tensor = self.o_proj(mixed_BLHD.flatten(2))
        return out_BLE


@final
@dataclass(eq=False)
class Rollout:
    """The attention of a training-time test.

    seen_BLL   bool: the slots that a slot sees at step 0; see `Batch.causal_BLL`
    keys       keys of each step so far, [B, L, G, D]
    values     values of each step so far, [B, L, G, D]
    """

    seen_BLL: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def attend(self, heads: Heads) -> Tensor:
        """Add the keys and values of the next step; return its mixed values [B, L, H, D]."""
        self.keys.append(heads.keys)
        self.values.append(heads.values)
        L, chunk = heads.queries.shape[1], CHUNKS.get(heads.queries.device.type, CHUNKS["cpu"])
        keys, values = list(self.keys), list(self.values)  # the backward pass sees these steps, not later ones
        if chunk >= L:
            return _attend(heads.queries, self.seen_BLL, keys, values, 0)
        parts: list[Tensor] = []
        for start in range(0, L, chunk):
            rows = slice(start, start + chunk)
            arguments = (heads.queries[:, rows], self.seen_BLL[:, rows], keys, values, start)
            parts.append(checkpoint(_attend, *arguments, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(parts, dim=1)


def _attend(q_BLHD: Tensor, seen_BLL: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], start: int) -> Tensor:
    """Mix the values for the rows from `start` on."""
    B, L, H, D = q_BLHD.shape
    num_slots, G = keys[0].shape[1:3]
    rows, N = slice(start, start + L), H // G
    q_BLGND = q_BLHD.view(B, L, G, N, D) * D**-0.5  # fewer products than scaling the scores
    q_BGYD = q_BLGND.permute(0, 2, 3, 1, 4).reshape(B, G, N * L, D)  # the scores then lie as softmax reads them
    scores = (q_BGYD @ keys[0].permute(0, 2, 3, 1)).view(B, G, N, L, num_slots)
    scores = scores.masked_fill(~seen_BLL[:, None, None], -torch.inf)
    own = [torch.einsum("blgnd,blgd->bgnl", q_BLGND, key_BLGD[:, rows])[..., None] for key_BLGD in keys[1:]]
    every = torch.cat([scores, *own], dim=-1)
    weights = every.softmax(-1, dtype=torch.promote_types(every.dtype, torch.float32)).to(q_BLHD.dtype)
    out_BGYD = weights[..., :num_slots].reshape(B, G, N * L, num_slots) @ values[0].transpose(1, 2)
    out_BLGND = out_BGYD.view(B, G, N, L, D).permute(0, 3, 1, 2, 4)
    for step, value_BLGD in enumerate(values[1:]):
        out_BLGND = out_BLGND + torch.einsum("bgnl,blgd->blgnd", weights[..., num_slots + step], value_BLGD[:, rows])
    return out_BLGND.reshape(B, L, H, D)


@torch.no_grad()
def draw_weights(network: nn.Module, seed: int) -> None:
    """Set norms to one, biases to zero, and draw matrices from a normal distribution of variance 1 / inputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
        else:
            parameter.fill_(1.0 if "norm" in name else 0.0)
