"""Prompts from a data set on the Hugging Face hub; needs the extra `outrider[datasets]`.

    hub:openai/gsm8k@main:test:question      name, optional @configuration, split, field

The field holds a text, a list of texts, which are the turns of a conversation, or a list of messages. Columns that hold
the rest of a prompt, such as "input" beside "instruction", are read with it (`outrider.data.prompt_layouts`).

`prompt_rows` is the one entrance for prompts of all commands: a file or a place on the hub.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from outrider.data.prompt_layouts import is_beside_a_request
from outrider.data.prompt_rows import PromptRow, read_prompt_rows
from outrider.errors import ConfigError

__all__ = ["HUB_PREFIX", "HubPlace", "hub_fields", "parse_hub", "prompt_rows"]

HUB_PREFIX = "hub:"


class HubPlace(NamedTuple):
    """Where on the hub a column of prompts is."""

    name: str
    configuration: str | None
    split: str
    field: str


def parse_hub(place: str) -> HubPlace:
    """Take `hub:name[@configuration]:split:field` apart.

    Raises:
        ConfigError: if it is not of that form.
    """
    parts = place.removeprefix(HUB_PREFIX).split(":")
    if len(parts) != 3 or not all(parts):
        raise ConfigError(f"'{place}' must be hub:name:split:field, for example hub:openai/gsm8k@main:test:question")
    name, _, configuration = parts[0].partition("@")
    return HubPlace(name, configuration or None, parts[1], parts[2])


def prompt_rows(place: str) -> Iterator[PromptRow]:
    """Yield the rows of a file, or of a data set on the hub.

    Raises:
        ConfigError: if they cannot be read; names the line.
    """
    if not place.startswith(HUB_PREFIX):
        yield from read_prompt_rows(Path(place))
        return
    for number, fields in enumerate(hub_fields(place), start=1):
        yield PromptRow(f"{place} row {number}", number, fields)


def hub_fields(place: str) -> Iterator[Mapping[str, Any]]:
    """Yield what each row asks, in order: the value of the field, and what may belong to it.

    Raises:
        ConfigError: without the package `datasets`, or if the data set or the field is not there.
    """
    wanted = parse_hub(place)
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(f"'{place}' needs the package datasets; install it with pip install 'outrider[datasets]'")
    from datasets import load_dataset

    try:
        rows = load_dataset(wanted.name, wanted.configuration, split=wanted.split, trust_remote_code=False)
    except Exception as error:  # the package raises many kinds, its own among them
        raise ConfigError(
            f"'{place}' cannot be loaded from the hub ({error}); check name, split and network"
        ) from error
    if wanted.field not in rows.column_names:
        raise ConfigError(f"'{place}' has no field '{wanted.field}'; it has {', '.join(rows.column_names)}")
    others = [name for name in rows.column_names if name != wanted.field and is_beside_a_request(name)]
    columns = {name: rows[name] for name in others}
    for at, value in enumerate(rows[wanted.field]):
        yield {_layout(value): value} | {name: columns[name][at] for name in others}


def _layout(value: Any) -> str:
    """The key under which a row of a file would hold this value."""
    if isinstance(value, list):
        return "messages" if value and isinstance(value[0], Mapping) else "turns"
    return "prompt"
