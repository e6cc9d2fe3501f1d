"""The catalogue of published drafters: TOML files under `recipes/catalogue/`.

`layouts.toml` says for each layout which method reads it, or why none does; every other file lists drafters, one a
line: their targets, layout, licence, and where their figures come from. A target is found under its hub id, and under
file and directory names that differ from it by owner, case and a quantisation's suffix.

Example: `base_name("bartowski/Qwen3-8B-GGUF")` and `base_name("qwen3-8b-Q4_K_M.gguf")` are `"qwen3-8b"`.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from outrider.env import data_directory
from outrider.errors import ConfigError
from outrider.records.presets import read_record, read_toml

__all__ = ["UNKNOWN", "Layout", "Published", "base_name", "layouts", "published"]

UNKNOWN: Final = "unknown"
"""The licence of a drafter whose source states none."""
FOLDER: Final = "catalogue"
LAYOUTS: Final = "layouts"
KINDS: Final = re.compile(
    r"[-_.](?:awq|gptq|gguf|ud|bnb|fp8|fp16|bf16|f16|f32|mxfp4|nvfp4|int[48]|[48]bit|quantized|i?q\d\w*|w\d+a\d+)"
    r"(?:[-_.].*)?$"
)
PART: Final = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of files.

    method   the method that reads it; None if none does
    reason   the reason for that
    sizes    keys of the config whose values must be the target's
    """

    method: str | None = None
    reason: str = ""
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Published:
    """A drafter that somebody published.

    drafter   its hub id
    targets   hub ids of the targets that it was made for
    layout    name of a `Layout`
    source    place of its figures or of its publication
    """

    drafter: str
    targets: tuple[str, ...]
    layout: str
    source: str
    licence: str = UNKNOWN


@cache
def layouts() -> dict[str, Layout]:
    """Return every layout by its name.

    Raises:
        ConfigError: if the file is damaged.
    """
    file = _folder() / f"{LAYOUTS}.toml"
    return {name: read_record(Layout, table, f"{file}, {name}") for name, table in read_toml(file).items()}


@cache
def published() -> tuple[Published, ...]:
    """Return every published drafter, in the order of the files.

    Raises:
        ConfigError: if a file is damaged, or names a layout that `layouts.toml` does not have.
    """
    found = []
    for file in sorted(_folder().glob("*.toml")):
        if file.stem != LAYOUTS:
            found += [read_record(Published, table, str(file)) for table in read_toml(file)["drafters"]]
    for one in found:
        if one.layout not in layouts():
            raise ConfigError(f"{one.drafter} has the unknown layout '{one.layout}'; add it to {LAYOUTS}.toml")
    return tuple(found)


def base_name(name: str) -> str:
    """Return a model's name without owner and quantisation, in lower case.

    >>> base_name("meta-llama/Llama-3.1-8B-Instruct"), base_name("Qwen3-8B-AWQ")
    ('llama-3.1-8b-instruct', 'qwen3-8b')
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    return KINDS.sub("", PART.sub("", last.removesuffix(".gguf")))


def _folder() -> Path:
    return data_directory("recipes") / FOLDER
