"""A `DecoderSpec` as a Hugging Face `config.json`, and the mask token that a drafter's config names.

The keys are those that `transformers`, vLLM and SGLang all read: the older `rope_theta` and `rope_scaling`, which every
release understands, rather than `rope_parameters`. Reading the config back gives the same `DecoderSpec`.

Example: a spec of family "qwen2" gives `{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", ...}`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from outrider.errors import CheckpointError
from outrider.models.spec import DecoderSpec, ExpertSpec, RopeSpec
from outrider.records.display import shown_json

__all__ = ["ARCHITECTURES", "MASK_KEYS", "config_of", "mask_of", "names_mask"]

MASK_KEYS = ("mask_token_id", "pard_token", "ptd_token_id")
"""Keys under which a config may name the mask token, in the order in which vLLM looks."""

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
}
SCALING_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
}


def config_of(spec: DecoderSpec, dtype: torch.dtype) -> dict[str, Any]:
    """Return the config of a causal language model of this shape, with weights stored in `dtype`."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[spec.family]],
        "model_type": spec.family,
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.rms_norm_eps,
        "max_position_embeddings": spec.max_position_embeddings,
        "rope_theta": spec.rope.theta,
        "rope_scaling": _scaling(spec.rope),
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": list(spec.eos_ids) if len(spec.eos_ids) != 1 else spec.eos_ids[0],
    }
    if not spec.eos_ids:
        config["eos_token_id"] = None
    # Qwen2 and Mistral have fixed biases and no such key
    if spec.family in ("llama", "qwen3", "qwen3_moe", "gemma3_text", "llama4_text"):
        config["attention_bias"] = spec.qkv_bias
    if spec.family == "llama":
        config["mlp_bias"] = spec.mlp_bias
    if spec.family == "phi3":
        config["partial_rotary_factor"] = spec.rope.partial_rotary_factor
        config["original_max_position_embeddings"] = spec.rope.original_max_position_embeddings
    own = {"gemma3_text": _gemma3, "llama4_text": _llama4}.get(spec.family)
    return config | (_window(spec) | _experts(spec) if own is None else own(spec))


def _gemma3(spec: DecoderSpec) -> dict[str, Any]:
    """Return the keys of Gemma 3, whose layers with a window rotate by a base of their own."""
    assert spec.local_rope is not None
    assert spec.local_rope.type == "default", "no older key says how windows are scaled"
    assert spec.attention_scale is not None
    windows = [window for window in spec.windows if window is not None]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(spec.attention_scale**-2),
        "rope_local_base_freq": spec.local_rope.theta,
        "sliding_window": windows[0] if windows else None,
        "layer_types": _kinds(spec),
    }


def _llama4(spec: DecoderSpec) -> dict[str, Any]:
    """Return the keys of Llama 4, which names the inner size of an expert as others do that of a plain MLP."""
    experts = _first_experts(spec) or ExpertSpec(num_experts=1, num_chosen=1, inner_size=spec.intermediate_size)
    layers = range(spec.num_layers)
    growth = spec.temperature
    return {
        "intermediate_size": experts.inner_size,
        "intermediate_size_mlp": spec.intermediate_size,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.num_chosen,
        "moe_layers": [layer for layer in layers if spec.experts_of(layer) is not None],
        "use_qk_norm": spec.unit_heads,
        "no_rope_layers": [int(spec.rotates(layer)) for layer in layers],
        "attention_chunk_size": spec.smallest_chunk,
        "layer_types": ["chunked_attention" if spec.chunk_of(layer) else "full_attention" for layer in layers],
        "attn_temperature_tuning": growth is not None,
    } | ({} if growth is None else {"floor_scale": growth.step, "attn_scale": growth.scale})


def _first_experts(spec: DecoderSpec) -> ExpertSpec | None:
    return next((experts for experts in spec.experts if experts is not None), None)


def _experts(spec: DecoderSpec) -> dict[str, Any]:
    """Return the keys of mixtures of experts, which are alike in all layers that have them."""
    experts = _first_experts(spec)
    if experts is None:
        return {}
    return {
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.num_chosen,
        "moe_intermediate_size": experts.inner_size,
        "norm_topk_prob": experts.normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, one in enumerate(spec.experts) if one is None],
    }


def _scaling(rope: RopeSpec) -> dict[str, Any] | None:
    if rope.type == "default":
        return None
    values = {key: getattr(rope, key) for key in SCALING_KEYS[rope.type]}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {"rope_type": rope.type} | {key: value for key, value in values.items() if value is not None}


def _window(spec: DecoderSpec) -> dict[str, Any]:
    windows = [window for window in spec.windows if window is not None]
    if spec.family == "llama":  # no target has one, but a draft head may
        return {"sliding_window": windows[0], "layer_types": _kinds(spec)} if windows else {}
    if spec.family in ("mistral", "phi3"):
        return {"sliding_window": windows[0] if windows else None}
    if spec.family == "qwen3_moe":
        return {"use_sliding_window": bool(windows), "sliding_window": windows[0] if windows else None}
    if not windows:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": spec.num_layers}
    return {"use_sliding_window": True, "sliding_window": windows[0], "layer_types": _kinds(spec)}


def _kinds(spec: DecoderSpec) -> list[str]:
    return ["full_attention" if window is None else "sliding_attention" for window in spec.windows]


def names_mask(config: Mapping[str, Any]) -> bool:
    """Check whether a config names a mask token."""
    return any(config.get(key) is not None for key in MASK_KEYS)


def mask_of(config: Mapping[str, Any], where: str | Path, vocab_size: int) -> int:
    """Return the mask token that a config names.

    Raises:
        CheckpointError: if it names none, several, or one outside the vocabulary.
    """
    named = next((config[key] for key in MASK_KEYS if config.get(key) is not None), None)
    if named is None:
        raise CheckpointError(
            f"{where} names no mask token (pard_token) in its config.json; it is a plain draft model, so run it as one"
        )
    masks = named if isinstance(named, list) else [named]
    if not masks or any(mask != masks[0] for mask in masks):
        raise CheckpointError(f"{where} names {len(masks)} mask tokens; only one for all places is run here")
    mask = masks[0]
    if type(mask) is not int or not 0 <= mask < vocab_size:
        raise CheckpointError(
            f"{where} names mask token {shown_json(mask)}, which is not one of its {vocab_size} tokens"
        )
    return mask
