"""The DFlash network written out densely in fp64: one text, one block, every row from scratch, one mask."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import silu

from outrider.models.blocks.dflash import DFlashSpec
from outrider.models.rope import rope_tables


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x_SHD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    left, right = x_SHD.chunk(2, dim=-1)
    return x_SHD * cos_SD[:, None] + torch.cat([-right, left], -1) * sin_SD[:, None]


def seen(spec: DFlashSpec, layer: int, num_context: int, num_slots: int) -> Tensor:
    """Which of the context and the slots each slot sees in a layer, bool [M, S]."""
    window = spec.decoder.windows[layer] or 10**9
    rows = torch.zeros(num_slots, num_context + num_slots, dtype=torch.bool)
    for slot in range(num_slots):
        for position in range(num_context + num_slots):
            later = position > num_context + slot
            rows[slot, position] = num_context + slot - position < window and not (later and spec.causal[layer])
    return rows


def convolve(x_ME: Tensor, base_TE: Tensor, delta_MTG: Tensor) -> Tensor:
    """One of DFlash-2's convolutions, by its sum: slot by slot, t by t, a group's correction repeated."""
    rows = []
    for slot in range(len(x_ME)):
        row_E = torch.zeros_like(x_ME[0])
        for back in range(min(len(base_TE), slot + 1)):
            group_E = delta_MTG[slot, back].repeat_interleave(x_ME.shape[1] // delta_MTG.shape[2])
            row_E = row_E + (base_TE[back] + group_E) * x_ME[slot - back]
        rows.append(row_E)
    return torch.stack(rows)


def around(
    spec: DFlashSpec, w: Mapping[str, Tensor], name: str, x_ME: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the convolved input of a sublayer, and the convolution of its output; both change nothing in DFlash."""
    if not spec.conv_kernel_size:
        return x_ME, lambda y_ME: y_ME
    base_2TE = w[f"{name}.base_kernel"]
    delta_M2TG = (x_ME @ w[f"{name}.kernel_projection.weight"].T).view(len(x_ME), 2, spec.conv_kernel_size, -1)
    return convolve(x_ME, base_2TE[0], delta_M2TG[:, 0]), lambda y_ME: convolve(y_ME, base_2TE[1], delta_M2TG[:, 1])


def select(weights: Mapping[str, Tensor], top_k: int, logits_V: Tensor, state_E: Tensor, before: int) -> Tensor:
    """Return the scores of a slot's best tokens by DFlash-2's selector, minus infinity elsewhere."""
    head = {name.removeprefix("candidate_selector."): weight for name, weight in weights.items()}
    context_Q = head["predecessor_codebook"][before] * (head["hidden_projection.weight"] @ state_E)
    scores_V = torch.full_like(logits_V, -torch.inf)
    for token in sorted(range(len(logits_V)), key=lambda token: -float(logits_V[token]))[:top_k]:
        scores_V[token] = logits_V[token] + context_Q @ head["successor_codebook"][token]
    return scores_V


def block_states(
    spec: DFlashSpec,
    weights: Mapping[str, Tensor],
    features_TF: Tensor,
    embedded_ME: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """Return the states of a block behind a text after the final norm, [M, E]."""
    decoder = spec.decoder
    context_TE = norm(features_TF @ weights["fc.weight"].T, weights["hidden_norm.weight"], eps)
    x_ME, (T, M) = embedded_ME * spec.embedding_scale, (len(features_TF), len(embedded_ME))
    repeat, (cos_SD, sin_SD) = decoder.num_heads // decoder.num_kv_heads, rope_tables(decoder, T + M)
    for layer in range(decoder.num_layers):
        w = {name.removeprefix(f"layers.{layer}."): weight for name, weight in weights.items()}
        normed_ME, behind = around(spec, w, "attention_conv", norm(x_ME, w["input_layernorm.weight"], eps))
        both_SE = torch.cat([context_TE, normed_ME])
        q = (normed_ME @ w["self_attn.q_proj.weight"].T).unflatten(-1, (-1, decoder.head_dim))
        k = (both_SE @ w["self_attn.k_proj.weight"].T).unflatten(-1, (-1, decoder.head_dim))
        v = (both_SE @ w["self_attn.v_proj.weight"].T).unflatten(-1, (-1, decoder.head_dim))
        if decoder.qk_norm:
            q, k = norm(q, w["self_attn.q_norm.weight"], eps), norm(k, w["self_attn.k_norm.weight"], eps)
        q, k = turn(q, cos_SD[T:], sin_SD[T:]), turn(k, cos_SD, sin_SD)
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores_HMS = torch.einsum("mhd,shd->hms", q, k) * decoder.head_dim**-0.5
        probs_HMS = scores_HMS.masked_fill(~seen(spec, layer, T, M), -torch.inf).softmax(-1)
        x_ME = x_ME + behind(torch.einsum("hms,shd->mhd", probs_HMS, v).flatten(1) @ w["self_attn.o_proj.weight"].T)
        inner_ME, behind = around(spec, w, "mlp_conv", norm(x_ME, w["post_attention_layernorm.weight"], eps))
        gated_MI = silu(inner_ME @ w["mlp.gate_proj.weight"].T) * (inner_ME @ w["mlp.up_proj.weight"].T)
        x_ME = x_ME + behind(gated_MI @ w["mlp.down_proj.weight"].T)
    return norm(x_ME, weights["norm.weight"], eps)
