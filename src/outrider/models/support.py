"""Families of the native decoder, and why a config of one may still be beyond it.

Example: `is_supported(PhiConfig())` is "model_type 'phi' is not one of llama, qwen2, ..."; that of `LlamaConfig()` is
None.
"""

from collections.abc import Mapping
from typing import Any

from transformers import (
    Gemma3TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from outrider.models.quant_scheme import QUANTIZATION, QuantScheme, quant_scheme
from outrider.records.display import shown_json

__all__ = ["FAMILIES", "head_dim_of", "is_supported", "ropes_of"]

FAMILIES: Mapping[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
    "mistral": MistralConfig,
    "phi3": Phi3Config,
    "gemma3_text": Gemma3TextConfig,
    "llama4_text": Llama4TextConfig,
}
MOST_EXPERTS = 1024
LAYER_KINDS = ("full_attention", "sliding_attention")
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
LLAMA4_ROPE_TYPES = ("default", "linear", "llama3")
"""The others multiply queries and keys, which are normalised behind the rotation there."""


def is_supported(config: PreTrainedConfig) -> str | None:
    """Explain, as the middle of a sentence, why the native decoder cannot run this model exactly; None when it can."""
    if config.model_type not in FAMILIES:
        return f"model_type {shown_json(config.model_type)} is not one of {', '.join(FAMILIES)}"
    if reason := _activation_reason(config):
        return reason
    scheme = _quant_scheme(config)
    if isinstance(scheme, str):
        return f"{scheme} (the original checkpoint runs with weights int8 or int4)"
    if config.is_heterogeneous:
        return "its layers differ (per_layer_config)"
    return _heads_reason(config) or _rope_reason(config) or _layers_reason(config) or _experts_reason(config)


def _activation_reason(config: PreTrainedConfig) -> str | None:
    if config.model_type == "gemma3_text":
        if config.hidden_activation != "gelu_pytorch_tanh":
            return f"hidden_activation is {shown_json(config.hidden_activation)}, not 'gelu_pytorch_tanh'"
        if config.use_bidirectional_attention:
            return "its attention is bidirectional"
        softcap = config.final_logit_softcapping or config.attn_logit_softcapping
        return f"it caps logits at {softcap}" if softcap else None
    return (
        None if config.hidden_act in ("silu", "swish") else f"hidden_act is {shown_json(config.hidden_act)}, not 'silu'"
    )


def _quant_scheme(config: PreTrainedConfig) -> QuantScheme | str | None:
    values = getattr(config, QUANTIZATION, None)
    if values is not None and not isinstance(values, Mapping):
        values = values.to_dict()  # the config of a model in memory
    return quant_scheme({QUANTIZATION: values})


def _heads_reason(config: PreTrainedConfig) -> str | None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if kv_heads < 1 or heads % kv_heads:
        return f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
    if head_dim_of(config) % 2:
        return f"head_dim {head_dim_of(config)} is odd"
    return None


def _rope_reason(config: PreTrainedConfig) -> str | None:
    for rope in ropes_of(config):
        if rope.get("rope_type") not in ROPE_TYPES:
            return f"rope_type {shown_json(rope.get('rope_type'))} is not one of {', '.join(ROPE_TYPES)}"
        if config.model_type == "llama4_text" and rope["rope_type"] not in LLAMA4_ROPE_TYPES:
            return f"rope_type {shown_json(rope['rope_type'])} is not one of {', '.join(LLAMA4_ROPE_TYPES)}"
        share = rope.get("partial_rotary_factor", 1.0)
        if share != 1.0 and config.model_type != "phi3":
            return f"partial_rotary_factor is {share}, not 1"
        turned = int(head_dim_of(config) * share)
        if turned < 2 or turned % 2:
            return f"partial_rotary_factor {share} turns {turned} of the {head_dim_of(config)} numbers of a head"
        if rope["rope_type"] == "longrope" and (reason := _longrope_reason(config, rope, turned // 2)):
            return reason
    return None


def _longrope_reason(config: PreTrainedConfig, rope: Mapping[str, Any], num_planes: int) -> str | None:
    if config.model_type == "gemma3_text":
        return "rope_type is 'longrope' in a gemma3_text model"
    for name in ("short_factor", "long_factor"):
        factors = rope.get(name)
        if not isinstance(factors, list) or len(factors) != num_planes:
            count = len(factors) if isinstance(factors, list) else "no"
            return f"{name} has {count} numbers for {num_planes} planes of a head"
        if not all(isinstance(one, int | float) and one > 0 for one in factors):
            return f"{name} holds a value that is no number above 0"
    original = rope.get("original_max_position_embeddings")
    if rope.get("attention_factor") is None and original == 1 < config.max_position_embeddings:
        return "original_max_position_embeddings is 1, from which longrope makes no attention_factor"
    return None


def _layers_reason(config: PreTrainedConfig) -> str | None:
    kinds = set(getattr(config, "layer_types", None) or ())
    if config.model_type in ("mistral", "qwen3_moe", "phi3") and kinds:
        return f"a {config.model_type} config with layer_types mixes attention kinds"
    if config.model_type == "llama4_text":
        return _llama4_layers_reason(config, kinds)
    unknown = sorted(kinds - {*LAYER_KINDS})
    return f"layer_types holds {shown_json(unknown[0])}" if unknown and config.model_type != "llama" else None


def _llama4_layers_reason(config: PreTrainedConfig, kinds: set[str]) -> str | None:
    layers, chunk = config.num_hidden_layers, config.attention_chunk_size
    unknown = sorted(kinds - {"full_attention", "chunked_attention"})
    if unknown:
        return f"layer_types holds {shown_json(unknown[0])}"
    if "chunked_attention" in kinds and (chunk is None or chunk < 1):
        return f"attention_chunk_size is {shown_json(chunk)} in a model with chunked attention"
    if len(config.no_rope_layers) < layers:
        return f"no_rope_layers has {len(config.no_rope_layers)} entries for {layers} layers"
    if config.attn_temperature_tuning and config.floor_scale < 1:
        return f"floor_scale is {config.floor_scale}"
    return None


def _experts_reason(config: PreTrainedConfig) -> str | None:
    key = {"qwen3_moe": "num_experts", "llama4_text": "num_local_experts"}.get(config.model_type)
    if key is None:
        return None
    experts, chosen = getattr(config, key), config.num_experts_per_tok
    if not 1 <= chosen <= experts <= MOST_EXPERTS:
        return f"num_experts_per_tok {chosen} is not within 1..{key} {experts}, which may be {MOST_EXPERTS}"
    if config.model_type == "qwen3_moe" and config.decoder_sparse_step < 1:
        return f"decoder_sparse_step is {config.decoder_sparse_step}"
    return None


def ropes_of(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """Return the rotary parameters of all kinds of layers."""
    rope = config.rope_parameters or {}
    return [rope[kind] for kind in LAYER_KINDS if rope.get(kind)] if config.model_type == "gemma3_text" else [rope]


def head_dim_of(config: PreTrainedConfig) -> int:
    """Return the size of a head."""
    # Qwen2's config class declares no head_dim, yet its model obeys one that the file holds.
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
