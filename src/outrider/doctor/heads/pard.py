"""Suspects of PARD: those of a draft model, and the mask token.

With a wrong mask the first guess is as good as ever, and the others are hopeless: they read another token's embedding.

Example: `pard_token` 0 where training used 16; the special tokens of the target are tried in its place.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from outrider.doctor.finding import Finding
from outrider.doctor.heads.draft_model import looks_like_model, model_variants
from outrider.doctor.heads.masks import mask_tokens
from outrider.doctor.variant import Config, Variant
from outrider.formats.hf_config import MASK_KEYS, names_mask
from outrider.formats.hf_draft import draft_facts
from outrider.formats.locate import CONFIG
from outrider.models.spec import DecoderSpec
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["RECURRENT", "feature_layers", "reads", "stored_findings", "variants"]

RECURRENT: Final = False


def reads(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a checkpoint looks like a draft model with a mask token."""
    return looks_like_model(names) and names_mask(config)


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
    config = read_json(directory / CONFIG).plain()
    return [*_masks(config, target), *model_variants(directory, spec)]


def _masks(config: Mapping[str, Any], target: Target) -> Iterator[Variant]:
    named = next((config[key] for key in MASK_KEYS if config.get(key) is not None), None)
    stored = draft_facts(config).get("mask_id")
    # a stored embedding is a tensor of its own, which belongs to its token
    others = mask_tokens(target, named) if stored is None else [stored]
    for token in others:
        if token != named:
            yield Variant(
                check="mask token",
                now=f"the mask is token {named}",
                instead=f"token {token}" + (", whose embedding is stored" if token == stored else ""),
                remedy=f"set pard_token to {token}",
                is_expected=token == stored,
                config=_setting_mask(token),
            )


def _setting_mask(token: int) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for key in MASK_KEYS:
            config.pop(key, None)
        config["pard_token"] = token

    return change
