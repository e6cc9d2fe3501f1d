"""Keys of a GGUF file with a mixture of experts in every layer.

llama.cpp fixes what a `qwen3moe` file leaves out: a softmax over all experts, and the shares of a row's experts divided
by their sum.

Example: `qwen3moe.expert_count` = 128 and `qwen3moe.expert_used_count` = 8 are Qwen3-30B-A3B.
"""

from typing import Any, Final

from outrider.formats.gguf.file import GgufFile

__all__ = ["EXPERT_KEYS", "QWEN3_MOE", "expert_keys"]

QWEN3_MOE: Final = "qwen3moe"
EXPERT_KEYS: Final = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})


def expert_keys(source: GgufFile) -> dict[str, Any]:
    """Return the keys of `config.json` that only mixtures of experts have.

    Raises:
        CheckpointError: for a value that is missing, of another type, or out of range.
    """
    return {
        "model_type": "qwen3_moe",
        "num_experts": source.integer(".expert_count"),
        "num_experts_per_tok": source.integer(".expert_used_count"),
        "moe_intermediate_size": source.integer(".expert_feed_forward_length"),
        "norm_topk_prob": True,
    }
