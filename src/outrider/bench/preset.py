"""Presets, and what a command line changes in them: what is asked for wins, and the preset's caps do not hide it.

A *preset* is a TOML file with the fields of `BenchConfig`: one of ours in `recipes/`, or a user's own.

    methods = ["none", "a_method:num_nodes=8"]
    batches = [1, 4]

    --prompts FILE       alone, these prompts and all of them: none of our categories, no cap on their number or length
    --categories NAME    no cap on length, which would leave out a whole category of long prompts
    --external NAME      in every category and on every prompt
    --target NAME        what the preset lists for its own target (heads, layers of a draft) is left out, with a note,
                         where it does not fit this one; so are heads that are not on this machine

An option that is given without a value is empty: `--methods` measures plain decoding alone.

Example: `chosen("quick", {"prompts": ("mine.jsonl",)}).categories` is empty, and `.all_prompts` is true.
"""

from collections.abc import Mapping
from typing import Any

from outrider.bench.config import BenchConfig
from outrider.records.presets import preset_file, read_record, read_toml

__all__ = ["chosen", "configured", "read_preset"]

LIFTED_BY: Mapping[str, Mapping[str, Any]] = {
    "prompts": {
        "categories": (),
        "all_prompts": True,
        "max_prompt_tokens": None,
        "external_categories": None,
    },
    "categories": {"max_prompt_tokens": None},
    "external": {"external_categories": None, "external_prompts": 1_000_000},
}
"""Option -> what takes the place of the preset's settings where it is given and they are not."""


def chosen(name: str, given: Mapping[str, Any]) -> BenchConfig:
    """Return the settings of a run.

    Args:
        name: a preset's name, or a TOML file.
        given: settings that were asked for, by name; None means not given.

    Raises:
        ConfigError: for a preset or a setting that is unknown or out of range.
    """
    preset = read_preset(name)
    asked = {setting: value for setting, value in given.items() if value is not None}
    for option, lifted in LIFTED_BY.items():
        if asked.get(option):
            preset |= {setting: value for setting, value in lifted.items() if setting not in asked}
    if asked.get("num_prompts") is not None:
        preset["all_prompts"] = False
    is_ours = not name.endswith(".toml")
    if is_ours or asked.get("target", preset.get("target")) != preset.get("target"):
        preset["optional"] = [
            *_texts(preset.get("optional")),
            *(text for option in ("methods", "external") if option not in asked for text in _texts(preset.get(option))),
        ]
    return configured(preset, **asked)


def configured(preset: Mapping[str, Any], **given: Any) -> BenchConfig:
    """Return the preset's settings, with those that were given in their place; None means not given.

    Raises:
        ConfigError: for a setting that is unknown, of the wrong type, or out of range.
    """
    settings = {**preset, **{name: value for name, value in given.items() if value is not None}}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return read_record(
        BenchConfig, {name: value for name, value in plain.items() if value is not None}, "the benchmark"
    )


def read_preset(name: str) -> dict[str, Any]:
    """Return the settings in `recipes/<name>.toml`, or in a TOML file.

    Raises:
        ConfigError: if there is no such preset, or it is not TOML.
    """
    return read_toml(preset_file("", name, "preset"))


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
