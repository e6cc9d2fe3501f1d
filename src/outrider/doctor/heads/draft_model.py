"""Suspects of a draft model: its config, its tokenizer, its chat template.

A draft model must number the tokens as the target does. Where its tokenizer says otherwise, it does not load; the
variant without the tokenizer's files shows whether the weights fit all the same.

Example: a draft model of the right family with a stranger's `tokenizer.json` is mended by the target's.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from outrider.doctor.finding import Finding
from outrider.doctor.heads.layer import MOVED_NORMS, layer_variants, moved_norms, norm_names
from outrider.doctor.variant import Variant
from outrider.formats.hf_config import names_mask
from outrider.formats.hf_draft import TOKENIZER_FILES, draft_facts
from outrider.formats.locate import CONFIG
from outrider.formats.weights import read_weights
from outrider.models.spec import DecoderSpec
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["RECURRENT", "feature_layers", "model_variants", "reads", "stored_findings", "variants"]

RECURRENT: Final = False


def reads(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a checkpoint looks like a whole model, or the layers of one, without a mask token."""
    return looks_like_model(names) and not names_mask(config)


def looks_like_model(names: Collection[str]) -> bool:
    """Return whether these are the tensors of a causal language model."""
    return any(name.startswith("model.layers.0.") for name in names) and not any(
        ".mtp_layers." in name for name in names
    )


def feature_layers(num_layers: int) -> tuple[int, ...]:
    """Return every feature layer that a variant may read: none."""
    return ()


def stored_findings(directory: Path, target: Target) -> list[Finding]:
    """Return findings on the files alone: none for this kind."""
    return []


def variants(directory: Path, target: Target, spec: DecoderSpec | None) -> list[Variant]:
    """Return the variants to try.

    Raises:
        CheckpointError: if the config or the header of the weights cannot be read.
    """
    return model_variants(directory, spec)


def model_variants(directory: Path, spec: DecoderSpec | None) -> list[Variant]:
    """Return the variants of a whole model, or of layers between the target's embedding and output head."""
    config, weights = read_json(directory / CONFIG).plain(), read_weights(directory)
    shapes = {name: weights.shape(name) for name in weights}
    is_slim = bool(draft_facts(config).get("shares"))
    # layers that were cut from the target have its sizes; another model has its own
    found = [*layer_variants(config, shapes, spec if is_slim else None)]
    norms = norm_names(shapes)
    if norms and min(float(weights[name].float().mean()) for name in norms) < MOVED_NORMS:
        found.append(moved_norms(norms))
    files = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    if files:
        found.append(
            Variant(
                check="tokenizer",
                now="its own tokenizer numbers its tokens",
                instead="the target's",
                remedy="replace the tokenizer's files by the target's; the weights were trained with its numbers",
                without=files,
            )
        )
    return found
