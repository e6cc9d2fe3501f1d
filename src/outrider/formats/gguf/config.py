"""A GGUF file's metadata as `config.json`: every key that changes the numbers is converted or refused.

Keys under the architecture's name (`llama.`) describe the network. Those in `SHAPE` and `ROPE` are converted, those in
`HARMLESS` change nothing, those in `NEUTRAL` change nothing at the value given there; any other is refused by name.
Defaults are llama.cpp's: a scaling factor without a type is linear, a missing YaRN context is the model's own,
`rope.scale_linear` is the older name of a linear factor.

Example: `llama.rope.scaling.factor` = 4 without a type gives `"rope_scaling": {"rope_type": "linear", "factor": 4.0}`.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import torch

from outrider.errors import CheckpointError
from outrider.formats.gguf import gemma3, llama4, phi3
from outrider.formats.gguf.experts import EXPERT_KEYS, QWEN3_MOE, expert_keys
from outrider.formats.gguf.file import ORIGINAL, GgufFile
from outrider.formats.gguf.gemma3 import GEMMA3, gemma3_keys
from outrider.formats.gguf.llama4 import LLAMA4, llama4_keys
from outrider.formats.gguf.phi3 import PHI3, phi3_keys
from outrider.records.display import shown_json

__all__ = ["ARCHITECTURES", "config_of_gguf"]

ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    QWEN3_MOE: "Qwen3MoeForCausalLM",
    GEMMA3: "Gemma3ForCausalLM",
    PHI3: "Phi3ForCausalLM",
    LLAMA4: "Llama4ForCausalLM",
}
OWN_KEYS: Final[Mapping[str, Collection[str]]] = {
    GEMMA3: gemma3.OWN_KEYS,
    QWEN3_MOE: EXPERT_KEYS,
    PHI3: phi3.OWN_KEYS,
    LLAMA4: llama4.OWN_KEYS,
}
EMBEDDING: Final = "token_embd.weight"
SHAPE: Final = {
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length"),
}
ROPE: Final = {
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
}
HARMLESS: Final = {
    *("tensor_data_layout", "pooling_type", "decoder_start_token_id", "expert_used_count"),
    "attention.layer_norm_epsilon",
}
ZERO: Final = (
    *("expert_count", "expert_shared_count", "expert_feed_forward_length", "expert_weights_scale"),
    *("attention.sliding_window", "attention.max_alibi_bias", "attention.clamp_kqv", "attention.scale"),
    *("attention.output_scale", "attention.temperature_scale", "attention.temperature_length"),
    *("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping", "use_parallel_residual"),
    *("leading_dense_block_count", "nextn_predict_layers", "interleave_moe_layer_step", "rescale_every_n_layers"),
)
NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    **dict.fromkeys(ZERO, (0,)),
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1.0, 0.0),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
}


def config_of_gguf(source: GgufFile) -> dict[str, Any]:
    """Return the `config.json` of this model.

    Raises:
        CheckpointError: for another architecture, a missing or misplaced value, and a key that cannot be converted.
    """
    _check_architecture(source)
    _check_keys(source)
    heads, kv_heads = source.require(".attention.head_count"), source.get(".attention.head_count_kv")
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise CheckpointError(f"{source.path} has a different number of heads per layer, which is not converted")
    heads, width = source.integer(".attention.head_count"), source.integer(".embedding_length")
    kv_heads = heads if kv_heads is None else source.integer(".attention.head_count_kv")
    head_dim = _head_dim(source, width, heads)
    architecture = source.architecture
    if EMBEDDING not in source.tensors or len(source.tensors[EMBEDDING].shape) != 2:
        raise CheckpointError(f"{source.path} holds no matrix {EMBEDDING}; it is a part of a model or damaged")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": source.tensors[EMBEDDING].shape[0],
        "hidden_size": width,
        "intermediate_size": source.integer(".feed_forward_length"),
        "num_hidden_layers": source.integer(".block_count", high=1000),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": _number(source, ".attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
        "max_position_embeddings": source.integer(".context_length"),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "rope_theta": _number(source, ".rope.freq_base", 10_000.0, above=1.0),
        "torch_dtype": "bfloat16",
    }
    config |= _token_ids(source, config["vocab_size"])
    if architecture == PHI3:
        return config | {"hidden_act": "silu"} | phi3_keys(source, config)
    scaling = _rope_scaling(source, head_dim, config["rope_theta"])
    own = gemma3_keys(source, config) if architecture == GEMMA3 else {"hidden_act": "silu"} | _biases(source)
    own |= expert_keys(source) if architecture == QWEN3_MOE else {}
    own |= llama4_keys(source, config) if architecture == LLAMA4 else {}
    return config | own | ({"rope_scaling": scaling} if scaling else {})


def _check_architecture(source: GgufFile) -> None:
    known = ", ".join(ARCHITECTURES)
    if source.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{source.path} has architecture {shown_json(source.architecture)}; GGUF files of {known} are converted"
        )
    if source.get(".attention.sliding_window", 0) and source.architecture not in (GEMMA3, PHI3):
        raise CheckpointError(
            f"{source.path} has a sliding attention window, which is not converted; use its original checkpoint"
        )
    if source.get(".expert_count", 0) and source.architecture not in (QWEN3_MOE, LLAMA4):
        raise CheckpointError(
            f"{source.path} is a mixture of experts of architecture {source.architecture}; of those, {QWEN3_MOE} and"
            f" {LLAMA4} are converted"
        )


def _check_keys(source: GgufFile) -> None:
    prefix = f"{source.architecture}."
    # keys without the architecture's name describe the file and its tokenizer, not the network
    for key, value in source.metadata.items():
        name = key.removeprefix(prefix)
        own = set(OWN_KEYS.get(source.architecture, ()))
        if not key.startswith(prefix) or name in SHAPE | ROPE | HARMLESS | own:
            continue
        if value not in NEUTRAL.get(name, ()):
            raise CheckpointError(
                f"{source.path} sets {key} to {shown_json(value)}, which is not converted; {ORIGINAL} of the model"
            )
    if source.metadata.get("tokenizer.ggml.add_eos_token") not in (None, False):
        raise CheckpointError(
            f"{source.path} sets tokenizer.ggml.add_eos_token, which would end every prompt; {ORIGINAL} of the model"
        )


def _head_dim(source: GgufFile, width: int, heads: int) -> int:
    key = source.metadata.integer(source.key(".attention.key_length"), width // heads, low=2, high=2**16)
    value = source.metadata.integer(source.key(".attention.value_length"), key)
    if key != value:
        raise CheckpointError(f"{source.path} has keys of {key} and values of {value} numbers, which is not converted")
    return key


def _number(source: GgufFile, key: str, default: float | None = None, **limits: float) -> float:
    """Return the decimal behind a stored fp32: 9.999999747378752e-06 is 1e-05."""
    if default is None:
        source.require(key)
    return float(f"{source.metadata.number(source.key(key), default or 0.0, **limits):.7g}")


def _token_ids(source: GgufFile, vocab_size: int) -> dict[str, int | None]:
    named = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{name}_token_id": source.metadata.integer(f"tokenizer.ggml.{key}_token_id", None, low=0, high=vocab_size - 1)
        for name, key in named.items()
    }


def _biases(source: GgufFile) -> dict[str, bool]:
    if source.architecture == "qwen2":
        return {}
    attention = {
        name for name in ("attn_q", "attn_k", "attn_v", "attn_output") if f"blk.0.{name}.bias" in source.tensors
    }
    if 0 < len(attention) < 4:
        raise CheckpointError(
            f"{source.path} has biases on {', '.join(sorted(attention))} only, which is not converted"
        )
    return {"attention_bias": bool(attention), "mlp_bias": "blk.0.ffn_up.bias" in source.tensors}


def _rope_scaling(source: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    if source.get(".rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(f"{source.path} rotates only part of each head, which is not converted")
    old = _number(source, ".rope.scale_linear", 1.0, above=0.0)
    factor = _number(source, ".rope.scaling.factor", old, low=0.0) or 1.0
    kind = source.metadata.text(source.key(".rope.scaling.type"), "linear" if factor != 1.0 else "none")
    if "rope_freqs.weight" in source.tensors:
        if kind != "none" and factor != 1.0:
            raise CheckpointError(
                f"{source.path} has rope_freqs and rope scaling {shown_json(kind)}, which is not converted"
            )
        return _llama3_scaling(source, head_dim, theta)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        context = source.integer(".context_length")
        key = source.key(".rope.scaling.original_context_length")
        original = source.metadata.integer(key, context, low=1, high=2**30)
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise CheckpointError(
        f"{source.path} has rope scaling {shown_json(kind)}; none, linear, yarn and Llama 3's are converted"
    )


def _llama3_scaling(source: GgufFile, head_dim: int, theta: float) -> dict[str, Any]:
    """Recover the scaling rule from a stored table of divisors: its largest is the factor, the rest must agree."""
    table = source.tensors["rope_freqs.weight"]
    # a file stores vectors in fp32; any other type fails the comparison
    stored = torch.from_numpy(table.read().reshape(-1)).view(torch.float32) if table.kind == "F32" else torch.empty(0)
    low, context = 1.0, 8192
    factor = round(float(stored.max()), 3) if len(stored) == head_dim // 2 else 0.0
    # transformers' rule for rope_type llama3, with the constants of Llama 3 or Llama 4
    turns = context * theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim) / (2 * torch.pi)
    for high in (4.0, 1.0):
        smooth = ((turns - low) / (high - low)).clamp(0, 1) if high > low else (turns >= low).float()
        if factor > 0 and torch.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise CheckpointError(f"{source.path} has rope_freqs that are not Llama's; {ORIGINAL}")
