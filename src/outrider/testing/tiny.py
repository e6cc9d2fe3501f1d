"""Tiny targets: real decoders with random weights, small enough that a test takes milliseconds.

Weights are larger than a trained model's, so that distributions are far from uniform and greedy text varies. In float64
two ways of computing the same logits agree to about 1e-14, and an exact comparison of texts is meaningful.
"""

from typing import Any

import torch
from torch import Tensor

from outrider.models.spec import DecoderSpec, ExpertSpec, RopeSpec, Temperature
from outrider.targets.native import NativeTarget

__all__ = ["tiny_experts", "tiny_gemma3", "tiny_llama4", "tiny_spec", "tiny_target", "tiny_weights"]


def tiny_spec(vocab_size: int = 31, max_positions: int = 96, **changes: Any) -> DecoderSpec:
    """Return the shape of a tiny decoder; keyword arguments replace fields of `DecoderSpec`."""
    fields: dict[str, Any] = {
        "family": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": max_positions,
        "rope": RopeSpec(),
        "eos_ids": (vocab_size - 1,),
    }
    fields |= changes
    return DecoderSpec(windows=fields.pop("windows", (None,) * fields["num_layers"]), **fields)


def tiny_gemma3(vocab_size: int = 31, max_positions: int = 96, window: int = 12) -> DecoderSpec:
    """Return the shape of a tiny Gemma 3: a layer with a window, one with full attention."""
    return tiny_spec(
        vocab_size,
        max_positions,
        family="gemma3_text",
        windows=(window, None),
        qk_norm=True,
        activation="gelu_tanh",
        embed_scale=4.0,
        norm_offset=1.0,
        post_norms=True,
        rope=RopeSpec(theta=1_000_000.0),
        local_rope=RopeSpec(original_max_position_embeddings=max_positions),
        attention_scale=6**-0.5,
        tie_word_embeddings=True,
    )


def tiny_experts(vocab_size: int = 31, max_positions: int = 96, num_experts: int = 6, **changes: Any) -> DecoderSpec:
    """Return the shape of a tiny Qwen3 mixture: a layer with experts, a plain one, another with experts."""
    experts = ExpertSpec(num_experts=num_experts, num_chosen=2, inner_size=changes.pop("inner_size", 8))
    layers = {"num_layers": 3, "experts": (experts, None, experts)}
    return tiny_spec(vocab_size, max_positions, **{"family": "qwen3_moe", "qk_norm": True} | layers | changes)


def tiny_llama4(vocab_size: int = 31, max_positions: int = 96, chunk: int = 16, **changes: Any) -> DecoderSpec:
    """Return the shape of a tiny Llama 4: a plain layer in chunks, and a mixture that sees all and does not rotate."""
    experts = ExpertSpec(
        num_experts=5,
        num_chosen=1,
        inner_size=8,
        normalised=False,
        gated_input=True,
        shared_size=changes.pop("shared", 8),
    )
    fields: dict[str, Any] = {
        "family": "llama4_text",
        "experts": (None, experts),
        "interleaved": True,
        "unit_heads": True,
        "rotated": (True, False),
        "chunks": (chunk, None),
        "temperature": Temperature(step=8, scale=0.5),
        "rope": RopeSpec(theta=500_000.0),
    }
    return tiny_spec(vocab_size, max_positions, **fields | changes)


def tiny_weights(spec: DecoderSpec, seed: int) -> dict[str, Tensor]:
    """Return random float64 weights, large enough that the distribution is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in spec.weight_shapes().items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = 1 + 0.1 * noise if name.endswith("norm.weight") else noise * (0.7 if len(shape) == 2 else 0.1)
    return weights


def tiny_target(
    seed: int = 0, *, dtype: torch.dtype = torch.float64, spec: DecoderSpec | None = None, **changes: Any
) -> NativeTarget:
    """Return a random decoder without a tokenizer; the last token id ends a text."""
    spec = spec or tiny_spec(**changes)
    return NativeTarget.from_weights(spec, tiny_weights(spec, seed), f"tiny-{seed}", dtype)
