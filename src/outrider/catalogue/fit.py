"""A comparison of a published drafter with a target, from the files that are on this machine.

Sizes come from the drafter's config.json, under the keys that its layout names; pickled weights are refused. A drafter
without local files is neither refused nor confirmed. Loading it compares more: tokens, tensors, fingerprints.

Example: a head with `"target_hidden_size": 4096` does not fit a target of hidden size 3584.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from outrider.catalogue.published import Layout
from outrider.catalogue.target_files import TargetFacts
from outrider.errors import CheckpointError
from outrider.formats.locate import CONFIG
from outrider.records.json_fields import read_json

__all__ = ["Fit", "fit_of", "has_weights"]


class Fit(NamedTuple):
    """The answer, None if the files of the drafter or the target are not here; and the reason."""

    fits: bool | None
    why: str


WORDS = {"vocab_size": "vocabulary", "hidden_size": "hidden size"}


def has_weights(directory: Path) -> bool:
    """Return whether a directory holds weights that can be read."""
    return any(directory.glob("*.safetensors"))


def fit_of(layout: Layout, directory: Path, facts: TargetFacts) -> Fit:
    """Compare the files of a drafter, its config at least, with a target."""
    if layout.method is None:
        return Fit(False, layout.reason)
    pickled = [] if has_weights(directory) else [*directory.glob("*.bin"), *directory.glob("*.pt")]
    if pickled:
        return Fit(False, f"its local copy holds only pickled weights ({pickled[0].name}), which are never opened")
    try:
        config = read_json(directory / CONFIG)
    except CheckpointError as error:
        return Fit(False, str(error))
    agreed = []
    for key in layout.sizes:
        own, wanted = _size(config, key), facts.size(key)
        if own is None or wanted is None:
            continue
        if own != wanted:
            return Fit(False, _difference(key, own, wanted, layout))
        agreed.append(f"{WORDS[key]} {own}")
    if not agreed:
        return Fit(None, "its config names no size to compare")
    return Fit(True, f"{' and '.join(agreed)} as the target")


def _size(config: Mapping[str, Any], key: str) -> int | None:
    """Return the size of the target that a drafter was made for; None where the config does not say."""
    inner = config.get("transformer_layer_config")  # the speculators layout
    layer = inner if isinstance(inner, Mapping) else config
    value = config.get(f"target_{key}") or layer.get(key)
    # some heads give their own number of columns as the vocabulary
    is_columns = key == "vocab_size" and value == config.get("draft_vocab_size")
    return value if type(value) is int and not is_columns else None


def _difference(key: str, own: int, wanted: int, layout: Layout) -> str:
    if layout.sizes == ("vocab_size",) and own < wanted:
        return f"it has {own} tokens, the target {wanted}; where they are the same, hf_draft.pad_draft adds the rows"
    return f"it was made for {WORDS[key]} {own}, but the target has {wanted}"
