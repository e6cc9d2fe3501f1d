"""Differences between a GGUF file of Gemma 3 and its Hugging Face checkpoint.

llama.cpp fixes what the file leaves out: every sixth layer sees the whole text, layers with a window rotate by base
10,000, and scores are divided by the root of the head size (of `hidden_size / heads` in the model of 27B). Weights of
norms are stored with the one that the network adds to them.

Example: 18 layers have full attention in layers 5, 11 and 17.
"""

from collections.abc import Mapping
from typing import Any, Final

from outrider.formats.gguf.file import GgufFile

__all__ = ["GEMMA3", "LAYER_NAMES", "OWN_KEYS", "gemma3_keys", "norm_offset"]

GEMMA3: Final = "gemma3"
OWN_KEYS: Final = frozenset({"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"})
LAYER_NAMES: Final = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYERS_OF_27B: Final = 62
PATTERN: Final = 6
LOCAL_BASE: Final = 10_000.0


def gemma3_keys(source: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `config.json` that only Gemma 3 has.

    Raises:
        CheckpointError: for a value of another type, or out of range.
    """
    fields, layers = source.metadata, int(config["num_hidden_layers"])
    pattern = fields.integer(source.key(".attention.sliding_window_pattern"), PATTERN, low=1, high=1000)
    base = fields.number(source.key(".rope.freq_base_swa"), LOCAL_BASE, above=1.0)
    is_27b = layers == LAYERS_OF_27B
    scalar = config["hidden_size"] // config["num_attention_heads"] if is_27b else config["head_dim"]
    return {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "rope_local_base_freq": base,
        "sliding_window": fields.integer(source.key(".attention.sliding_window"), low=1, high=2**30),
        "layer_types": ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)],
    }


def norm_offset(source: GgufFile, name: str) -> float:
    """Return what the file's tensor `name` has more than Hugging Face's: 1 for the norms of Gemma 3."""
    return 1.0 if source.architecture == GEMMA3 and name.endswith("norm.weight") else 0.0
