"""The fields of a `DecoderSpec`, read from a family's config.

Example: those of a Gemma 3 config have `activation` "gelu_tanh" and a window in five of six layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from outrider.models.families.parts import ExpertSpec, RopeSpec, Temperature
from outrider.models.support import head_dim_of, ropes_of

__all__ = ["fields_of", "ids_of"]


def fields_of(config: PreTrainedConfig, eos_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Return the fields of a supported config's `DecoderSpec`; `eos_ids` are those of its generation config."""
    family = config.model_type
    is_gemma = family == "gemma3_text"
    bias = family in ("llama", "qwen3", "qwen3_moe", "gemma3_text", "llama4_text") and config.attention_bias
    eos = [*eos_ids, *ids_of(config.eos_token_id)]
    return {
        "family": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": head_dim_of(config),
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope": RopeSpec.from_config(config, _rope_of(config)),
        "tie_word_embeddings": config.tie_word_embeddings,
        "qkv_bias": bias or family == "qwen2",
        "o_bias": bias,
        "mlp_bias": family == "llama" and config.mlp_bias,
        "qk_norm": family in ("qwen3", "qwen3_moe") or is_gemma,
        "windows": _windows(config),
        "eos_ids": tuple(dict.fromkeys(eos)),
        "fused": family == "phi3",
        "experts": _experts(config) if family == "qwen3_moe" else (),
        **(_gemma(config) if is_gemma else {}),
        **(_llama4(config) if family == "llama4_text" else {}),
    }


def ids_of(value: int | list[int] | None) -> list[int]:
    """Return the ids of a setting that holds one, several or none."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _rope_of(config: PreTrainedConfig) -> Mapping[str, Any]:
    """Return the rotary parameters of layers with full attention."""
    return ropes_of(config)[0]


def _gemma(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what only Gemma 3 has."""
    return {
        "activation": "gelu_tanh",
        "embed_scale": config.hidden_size**0.5,
        "norm_offset": 1.0,
        "post_norms": True,
        "local_rope": RopeSpec.from_config(config, config.rope_parameters["sliding_attention"]),
        "attention_scale": config.query_pre_attn_scalar**-0.5,
    }


def _llama4(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what only Llama 4 has; `intermediate_size` is there that of an expert."""
    layers = range(config.num_hidden_layers)
    size = config.intermediate_size
    experts = ExpertSpec(
        num_experts=config.num_local_experts,
        num_chosen=config.num_experts_per_tok,
        inner_size=size,
        normalised=False,
        gated_input=True,
        shared_size=size,
    )
    mixtures = tuple(experts if layer in config.moe_layers else None for layer in layers)
    chunk = config.attention_chunk_size
    chunks = tuple(chunk if config.layer_types[layer] == "chunked_attention" else None for layer in layers)
    rotated = tuple(bool(config.no_rope_layers[layer]) for layer in layers)
    grows = config.attn_temperature_tuning and not all(rotated)
    return {
        "intermediate_size": config.intermediate_size_mlp,
        "experts": mixtures if any(mixtures) else (),
        "interleaved": True,
        "unit_heads": config.use_qk_norm,
        "rotated": rotated,
        "chunks": chunks if any(chunks) else (),
        "temperature": Temperature(step=config.floor_scale, scale=config.attn_scale) if grows else None,
    }


def _experts(config: PreTrainedConfig) -> tuple[ExpertSpec | None, ...]:
    """Return the experts of every layer of a Qwen3 mixture."""
    experts = ExpertSpec(
        num_experts=config.num_experts,
        num_chosen=config.num_experts_per_tok,
        inner_size=config.moe_intermediate_size,
        normalised=config.norm_topk_prob,
    )
    plain, every = config.mlp_only_layers, config.decoder_sparse_step
    layers = range(config.num_hidden_layers)
    found = tuple(None if layer in plain or (layer + 1) % every else experts for layer in layers)
    return found if any(found) else ()


def _windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    if config.model_type in ("llama", "llama4_text"):
        return (None,) * int(config.num_hidden_layers)
    window: int | None = config.sliding_window
    if config.model_type in ("mistral", "qwen3_moe", "phi3"):
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in config.layer_types)
