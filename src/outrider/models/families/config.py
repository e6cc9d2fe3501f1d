"""Reading of a family's `config.json` as `transformers` does, after checks of its types and of keys that it ignores.

Example: `read_config("model/config.json").num_hidden_layers` is 30 for SmolLM2-135M.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from outrider.errors import CheckpointError, as_error
from outrider.models.config_keys import check_keys, check_types
from outrider.models.support import FAMILIES, ropes_of
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields, read_json

__all__ = ["family_config", "filled_config", "read_config"]

OLD_KEYS = {
    "gemma3_text": frozenset({"rope_local_base_freq", "sliding_window_pattern"}),
    "qwen3_moe": frozenset({"num_experts", "num_local_experts"}),
}
"""Other spellings that a family's class still reads."""


def read_config(path: str | Path) -> PreTrainedConfig:
    """Read a `config.json` of a supported family as a `transformers` config; no code from the directory is ever run.

    Raises `CheckpointError` when the file is missing, broken, or of another family.
    """
    return family_config(read_json(Path(path)), path)


def family_config(values: Mapping[str, Any], path: str | Path) -> PreTrainedConfig:
    """Return the content of a `config.json` of a supported family as a `transformers` config.

    Raises `CheckpointError` when it is broken, or of another family.
    """
    raw = values if isinstance(values, Fields) else Fields(values, str(path))
    family = raw.text("model_type", "None")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{path} has model_type {shown_json(family)}; the native decoder runs {', '.join(FAMILIES)}"
        )
    return filled_config(raw, family, path)


def filled_config(
    values: Mapping[str, Any], family: str, path: str | Path, *, own: Collection[str] = (), partial: bool = False
) -> PreTrainedConfig:
    """Return the content of a `config.json` as a family's `transformers` config.

    Args:
        own: further keys that the caller obeys.
        partial: the shape may be left out, as in the config of a draft head.

    Raises:
        CheckpointError: for a value of another type, and for a key that is not obeyed but changes the numbers.
    """
    raw = Fields(values, f"{path} is not a valid {family} config", remedy="check it against the original")
    check_types(raw, partial=partial)
    with as_error(CheckpointError, raw.where, raw.remedy):
        config = FAMILIES[family].from_dict(deepcopy(raw.plain()))
        config.standardize_rope_params()  # as the model does again, with a context that stands outside the section
        rope = ropes_of(config)[0]
        if rope.get("rope_theta") is None:
            raise raw.error(f"{raw.where}: rope_theta is null but must be a number above 1; {raw.remedy}")
        known = frozenset(FAMILIES[family]().to_dict()) | OLD_KEYS.get(family, frozenset()) | set(own)
        check_keys(raw, known, config, rope.get("rope_theta"))
    return config
