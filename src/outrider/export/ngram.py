"""Prompt lookup as vLLM's `ngram` method, with `prompt_lookup_min` and `prompt_lookup_max`."""

from outrider.export.exported import Exported
from outrider.export.serving import Order
from outrider.proposers.ngram import NgramConfig

__all__ = ["lookup", "on_vllm"]


def on_vllm(order: Order) -> Exported:
    return lookup(order.config)


def lookup(config: NgramConfig) -> Exported:
    """Return the speculative configuration of these settings."""
    notes = {
        "vLLM looks up the earliest occurrence, ours the latest": config.policy != "earliest",
        "vLLM drafts one continuation, not a tree": config.num_candidates > 1,
    }
    return Exported(
        speculative={
            "method": "ngram",
            "num_speculative_tokens": config.num_nodes,
            "prompt_lookup_min": config.min_n,
            "prompt_lookup_max": config.max_n,
        },
        notes=tuple(note for note, holds in notes.items() if holds),
    )
