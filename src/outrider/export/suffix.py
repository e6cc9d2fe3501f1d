"""Suffix decoding as vLLM's `suffix` method.

The cache of earlier answers is off: it cannot be cleared on a running server, so a repeat would draft from its own
answers.
"""

from outrider.export.exported import Exported
from outrider.export.serving import Order
from outrider.proposers.suffix import SuffixConfig

__all__ = ["lookup", "on_vllm"]


def on_vllm(order: Order) -> Exported:
    return lookup(order.config)


def lookup(config: SuffixConfig) -> Exported:
    """Return the speculative configuration of these settings."""
    notes = {
        "on vLLM it drafts from the request's own text only: a server cannot clear its cache of earlier answers": True,
        "vLLM drafts a path, not a tree": config.mode == "tree",
        "vLLM has no offset": config.offset != 0,
    }
    return Exported(
        speculative={
            "method": "suffix",
            "num_speculative_tokens": config.num_nodes,
            "suffix_decoding_max_tree_depth": config.max_depth,
            "suffix_decoding_max_cached_requests": 0,
            "suffix_decoding_max_spec_factor": config.factor,
            "suffix_decoding_min_token_prob": config.min_token_prob,
        },
        notes=tuple(note for note, holds in notes.items() if holds),
    )
