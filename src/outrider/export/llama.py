"""Outrider's methods as speculation of llama.cpp's server.

    method        --spec-type     differences
    ngram         ngram-simple    one length of the n-gram, its latest occurrence, a chain
    draft_model   draft-simple    a chain
    eagle3        draft-eagle3    a chain

llama.cpp has no other method of ours. Draft models and heads are exported as complete directories, which its converter
makes GGUF files of.

Source: docs/speculative.md and common/speculative.cpp of llama.cpp. Example: prompt lookup with `num_nodes=8, min_n=2`
is `{"spec-type": "ngram-simple", "spec-ngram-simple-size-n": "2", "spec-ngram-simple-size-m": "8"}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from outrider.errors import ConfigError
from outrider.export.serving import Order, on_vllm
from outrider.results.rows import PLAIN

__all__ = ["KINDS", "REASONS", "Speculation", "lookup_flags", "on_llama"]

KINDS: Final[Mapping[str, str]] = {"eagle3": "draft-eagle3", "draft_model": "draft-simple"}
"""Method with weights -> its `--spec-type`."""
REASONS: Final[Mapping[str, str]] = {
    "suffix": "it has no suffix decoding; --spec-type ngram-map-k4v is another lookup that counts",
    "pard": "it has no parallel drafting with a mask token",
    "peagle": "it has no parallel drafting with a mask token",
    "dflash": "networks are not written here as GGUF files of its dflash architecture",
    "medusa": "it has no Medusa",
    "mtp": "its draft-mtp reads modules inside the target's own GGUF file alone",
    "hybrid": "its lookups and its draft models are not chosen by their worth",
}


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """The server's flags for a method.

    flags   by name
    draft   directory of the draft model or head, to be converted; None without one
    notes   differences from Outrider, a sentence each
    """

    flags: Mapping[str, str] = field(default_factory=dict)
    draft: Path | None = None
    notes: tuple[str, ...] = ()


def on_llama(method: str, order: Order) -> Speculation:
    """Return the flags of a method, none for plain decoding.

    Raises:
        ConfigError: if llama.cpp has no such method.
        CheckpointError: if the checkpoint cannot be read, or does not belong to the target.
    """
    if method == PLAIN:
        return Speculation()
    if method in KINDS:
        return _drafted(method, order)
    if method != "ngram":
        raise ConfigError(f"llama.cpp cannot serve it: {REASONS.get(method, 'it has no such method')}")
    config = order.config
    notes = {
        f"llama.cpp looks up {config.min_n} tokens, ours {config.min_n} to {config.max_n}": config.min_n < config.max_n,
        "llama.cpp looks up the latest occurrence, ours the earliest": config.policy == "earliest",
        "llama.cpp drafts one continuation, not a tree": config.num_candidates > 1,
    }
    return Speculation(flags=lookup_flags(config), notes=tuple(note for note, holds in notes.items() if holds))


def lookup_flags(config: Any) -> dict[str, str]:
    """Return the flags of prompt lookup: the shortest of our lengths, for it matches wherever a longer one does."""
    return {
        "spec-type": "ngram-simple",
        "spec-ngram-simple-size-n": str(config.min_n),
        "spec-ngram-simple-size-m": str(config.num_nodes),
    }


def _drafted(method: str, order: Order) -> Speculation:
    """Return a method with weights, which are exported as they are for vLLM."""
    exported = on_vllm(method, order)
    assert exported is not None, "every engine's export is the same directory"
    is_tree = any("not the tree" in note for note in exported.notes)
    return Speculation(
        flags={"spec-type": KINDS[method], "spec-draft-n-max": str(exported.speculative["num_speculative_tokens"])},
        draft=Path(exported.speculative["model"]),
        notes=("llama.cpp drafts a chain, not the tree",) if is_tree else (),
    )
