"""Prompts from a data set on the Hugging Face hub; needs the extra `outrider[datasets]`.

    hub:openai/gsm8k@main:test:question      name, optional @configuration, split, field

The field holds a text, or a list of texts, which are the turns of a conversation.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

from outrider.errors import ConfigError

__all__ = ["HUB_PREFIX", "HubPlace", "hub_texts", "parse_hub"]

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


def hub_texts(place: str) -> Iterator[Any]:
    """The values of the field, in order.

    Raises:
        ConfigError: without the package `datasets`, or if the data set or the field is not there.
    """
    wanted = parse_hub(place)
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(f"'{place}' needs the package datasets; install it with pip install 'outrider[datasets]'")
    from datasets import load_dataset

    try:
        rows = load_dataset(wanted.name, wanted.configuration, split=wanted.split)
    except Exception as error:  # the package raises many kinds, its own among them
        raise ConfigError(
            f"'{place}' cannot be loaded from the hub ({error}); check name, split and network"
        ) from error
    if wanted.field not in rows.column_names:
        raise ConfigError(f"'{place}' has no field '{wanted.field}'; it has {', '.join(rows.column_names)}")
    yield from rows[wanted.field]
