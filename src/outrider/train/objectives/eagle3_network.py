"""The EAGLE-3 head as a trainable network, with the rollout of training-time test (arXiv 2503.01840, section 3.2).

At run time the head feeds on its own outputs, so it is trained on them. Step 0 reads the target's fused features; step
j reads, in the same slot t, its own output of step j - 1 and the token after it, x_{t+1+j}, and predicts x_{t+2+j}.
Which keys a slot sees is what it would see at run time after committed text up to t and j drafted tokens:

    slot t at step j    the step-0 keys of slots 0..t of its text, and its own keys of steps 1..j

So the scores of step j are one causal L x L block and j numbers per slot, elementwise products of its query with its
own keys; never a matrix over all steps. Keys of step j stand at rotary position t + j.

Worked example: slot 2 at step 2 sees step-0 slots 0, 1, 2 at positions 0, 1, 2, and itself at positions 3 and 4.

Parameters have the published names (`midlayer.self_attn.q_proj.weight`, ...). Inference runs the same numbers through
`outrider.models.eagle3`; a test holds both together.

Shapes: B rows, L positions, E hidden size, F features, H heads, G key/value heads, N = H / G, D head size, J own keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from torch.utils.checkpoint import checkpoint

from outrider.models.eagle3 import Eagle3Spec
from outrider.models.rope import rope_tables
from outrider.models.spec import DecoderSpec
from outrider.train.batch import Batch
from outrider.train.objectives.decoder import Mlp

__all__ = ["Eagle3Network", "Rollout", "attend", "plain"]

CHUNKS = {"cpu": 256, "cuda": 1024}
"""Query rows whose scores exist at a time; with more rows than that, scores are made again in the backward pass."""


def plain(layer: DecoderSpec) -> DecoderSpec:
    """One Llama layer of the same sizes, without biases and head norms."""
    return replace(
        layer,
        family="llama",
        num_layers=1,
        windows=(None,),
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )


class Norm(nn.Module):
    """RMSNorm with a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


@dataclass(eq=False)
class Rollout:
    """Keys and values [B, G, L, D] of each step so far, and what step-0 slots see of each other, bool [B, L, L]."""

    seen_BLL: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def attend(q_BHLD: Tensor, rollout: Rollout) -> Tensor:
    """Attention of the newest step, [B, H, L, D]; its own keys and values are already in the rollout."""
    L, chunk = q_BHLD.shape[2], CHUNKS.get(q_BHLD.device.type, CHUNKS["cpu"])
    if chunk >= L:
        return _attend(q_BHLD, rollout.seen_BLL, rollout.keys, rollout.values, 0)
    parts: list[Tensor] = []
    for start in range(0, L, chunk):
        rows = slice(start, start + chunk)
        arguments = (q_BHLD[:, :, rows], rollout.seen_BLL[:, rows], list(rollout.keys), list(rollout.values), start)
        parts.append(checkpoint(_attend, *arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, dim=2)


def _attend(q_BHLD: Tensor, seen_BLL: Tensor, keys: list[Tensor], values: list[Tensor], start: int) -> Tensor:
    """Rows `start` and on."""
    B, H, L, D = q_BHLD.shape
    G = keys[0].shape[1]
    q_BGNLD = q_BHLD.view(B, G, H // G, L, D) * D**-0.5
    scores = q_BGNLD @ keys[0][:, :, None].transpose(-1, -2)
    scores = scores.masked_fill(~seen_BLL[:, None, None], -torch.inf)
    rows = slice(start, start + L)
    own = [(q_BGNLD * key_BGLD[:, :, None, rows]).sum(-1, keepdim=True) for key_BGLD in keys[1:]]
    every = torch.cat([scores, *own], dim=-1)
    weights = every.softmax(-1, dtype=torch.promote_types(every.dtype, torch.float32)).to(q_BHLD.dtype)
    first = keys[0].shape[2]
    out_BGNLD = weights[..., :first] @ values[0][:, :, None]
    for step, value_BGLD in enumerate(values[1:]):
        out_BGNLD = out_BGNLD + weights[..., first + step, None] * value_BGLD[:, :, None, rows]
    return out_BGNLD.reshape(B, H, L, D)


class Attention(nn.Module):
    """Queries, keys and values read token and state side by side: twice the hidden size."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        width, head = spec.hidden_size, spec.head_dim
        self.heads = (spec.num_heads, spec.num_kv_heads, head)
        self.q_proj = nn.Linear(2 * width, spec.num_heads * head, bias=False)
        self.k_proj = nn.Linear(2 * width, spec.num_kv_heads * head, bias=False)
        self.v_proj = nn.Linear(2 * width, spec.num_kv_heads * head, bias=False)
        self.o_proj = nn.Linear(spec.num_heads * head, width, bias=False)

    def forward(self, pair_BLX: Tensor, cos_BLD: Tensor, sin_BLD: Tensor, rollout: Rollout) -> Tensor:
        B, L = pair_BLX.shape[:2]
        H, G, D = self.heads
        q_BHLD = self.q_proj(pair_BLX).view(B, L, H, D).transpose(1, 2)
        k_BGLD = self.k_proj(pair_BLX).view(B, L, G, D).transpose(1, 2)
        rollout.keys.append(_rotate(k_BGLD, cos_BLD, sin_BLD))
        rollout.values.append(self.v_proj(pair_BLX).view(B, L, G, D).transpose(1, 2))
        out_BHLD = attend(_rotate(q_BHLD, cos_BLD, sin_BLD), rollout)
        out: Tensor = self.o_proj(out_BHLD.transpose(1, 2).reshape(B, L, H * D))
        return out


def _rotate(x_BHLD: Tensor, cos_BLD: Tensor, sin_BLD: Tensor) -> Tensor:
    left, right = x_BHLD.to(cos_BLD.dtype).chunk(2, dim=-1)
    cos, sin = cos_BLD[:, None], sin_BLD[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x_BHLD.dtype)


class Midlayer(nn.Module):
    """The one decoder layer."""

    def __init__(self, spec: Eagle3Spec) -> None:
        super().__init__()
        width, eps = spec.layer.hidden_size, spec.layer.rms_norm_eps
        self.norm_before_residual = spec.norm_before_residual
        self.input_layernorm = Norm(width, eps)
        self.hidden_norm = Norm(width, eps)
        self.self_attn = Attention(spec.layer)
        self.post_attention_layernorm = Norm(width, eps)
        self.mlp = Mlp(spec.layer)

    def forward(
        self, embed_BLE: Tensor, state_BLE: Tensor, cos_BLD: Tensor, sin_BLD: Tensor, rollout: Rollout
    ) -> Tensor:
        hidden_BLE = self.hidden_norm(state_BLE)
        pair_BLX = torch.cat([self.input_layernorm(embed_BLE), hidden_BLE], dim=-1)
        x_BLE = hidden_BLE if self.norm_before_residual else state_BLE
        x_BLE = x_BLE + self.self_attn(pair_BLX, cos_BLD, sin_BLD, rollout)
        out: Tensor = x_BLE + self.mlp(self.post_attention_layernorm(x_BLE))
        return out


class Eagle3Network(nn.Module):
    """Everything that is trained: fusion, layer, final norm and output head."""

    def __init__(self, spec: Eagle3Spec) -> None:
        super().__init__()
        layer = spec.layer
        assert layer == plain(layer), "a head that is trained here is a plain Llama layer"
        self.spec = spec
        self.fc = nn.Linear(spec.features, layer.hidden_size, bias=False)
        self.midlayer = Midlayer(spec)
        self.norm = Norm(layer.hidden_size, layer.rms_norm_eps)
        self.lm_head = nn.Linear(layer.hidden_size, spec.draft_vocab_size, bias=False)
        sizes = [spec.target_hidden_size] * spec.num_feature_layers if spec.fc_norm else []
        self.fc_norm = nn.ModuleList(Norm(size, layer.rms_norm_eps) for size in sizes)
        if spec.norm_before_fc:
            self.input_norm = Norm(spec.features, layer.rms_norm_eps)

    def fuse(self, features_BLF: Tensor) -> Tensor:
        """The first states [B, L, E]."""
        if self.spec.fc_norm:
            parts = features_BLF.chunk(self.spec.num_feature_layers, dim=-1)
            features_BLF = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        if self.spec.norm_before_fc:
            features_BLF = self.input_norm(features_BLF)
        return linear(features_BLF, self.fc.weight)

    def steps(self, batch: Batch, features_BLF: Tensor, embedding_VE: Tensor, num_steps: int) -> Iterator[Tensor]:
        """Output states [B, L, E] of each step of the rollout, step 0 first."""
        rollout = Rollout(batch.causal_BLL())
        state_BLE = self.fuse(features_BLF)
        for step in range(num_steps):
            embed_BLE = embedding_VE[batch.shifted(batch.tokens_BL, 1 + step)].to(state_BLE.dtype)
            cos_BLD, sin_BLD = self._angles(batch.positions_BL + step)
            state_BLE = self.midlayer(embed_BLE, state_BLE, cos_BLD, sin_BLD, rollout)
            if self.spec.norm_output:
                state_BLE = self.norm(state_BLE)
            yield state_BLE

    def predict(self, states_RE: Tensor) -> Tensor:
        """Logits [R, K]."""
        logits: Tensor = self.lm_head(states_RE if self.spec.norm_output else self.norm(states_RE))
        return logits

    def _angles(self, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.spec.layer
        most = layer.max_position_embeddings if layer.rope.type == "dynamic" else int(positions_BL.max()) + 1
        tables = rope_tables(layer, most, positions_BL.device)
        wide = torch.float64 if self.norm.weight.dtype == torch.float64 else torch.float32
        half = layer.head_dim // 2
        rows_BL = positions_BL.clamp(max=most - 1)  # behind the limit nothing is learnt
        return tables.cos_PD[:, :half].to(wide)[rows_BL], tables.sin_PD[:, :half].to(wide)[rows_BL]
