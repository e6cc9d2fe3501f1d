"""Differences between a GGUF file of Llama 4 and its Hugging Face checkpoint.

llama.cpp fixes what the file leaves out: every fourth layer sees the whole text and does not rotate, the others see
chunks of 8192 tokens, queries grow from position 8191 on, and queries and keys are normalised unless there are 128
experts. Rows of queries and keys are in the checkpoint's order.

Example: with a step of 2, the layers 1, 3, 5, ... are mixtures, and the others have a plain MLP.
"""

from collections.abc import Mapping
from typing import Any, Final

from outrider.errors import CheckpointError
from outrider.formats.gguf.file import ORIGINAL, GgufFile

__all__ = ["EXPERTS_NAME", "LAYER_NAMES", "LLAMA4", "OWN_KEYS", "llama4_keys"]

LLAMA4: Final = "llama4"
OWN_KEYS: Final = frozenset(
    {"expert_count", "expert_used_count", "expert_feed_forward_length", "interleave_moe_layer_step"}
)
EXPERTS_NAME: Final = "feed_forward.experts"
LAYER_NAMES: Final = {
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "ffn_gate_inp": "feed_forward.router",
    "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
    "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
    "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
}
CHUNK: Final = 8192
NO_ROPE_EVERY: Final = 4
EXPERTS_OF_MAVERICK: Final = 128


def llama4_keys(source: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `config.json` that only Llama 4 has.

    Raises:
        CheckpointError: for a value that is missing, of another type, or out of range.
    """
    num_experts, step = source.integer(".expert_count"), source.integer(".interleave_moe_layer_step", high=1000)
    if source.get(".attention.sliding_window") is not None:
        raise CheckpointError(f"{source.path} has no chunked attention, which is not converted; {ORIGINAL}")
    return {
        "model_type": "llama4_text",
        "intermediate_size": source.integer(".expert_feed_forward_length"),
        "intermediate_size_mlp": config["intermediate_size"],
        "num_local_experts": num_experts,
        "num_experts_per_tok": source.integer(".expert_used_count"),
        "interleave_moe_layer_step": step,
        "no_rope_layer_interval": NO_ROPE_EVERY,
        "attention_chunk_size": CHUNK,
        "floor_scale": CHUNK,
        "attn_scale": 0.1,
        "attn_temperature_tuning": True,
        "use_qk_norm": num_experts != EXPERTS_OF_MAVERICK,
    }
