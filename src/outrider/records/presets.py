"""Records in TOML files: ours under `recipes/`, or a user's own with the same names.

    [one]                       one record per table, or the whole file is one
    field = value               an unknown field is an error that names the nearest known one

Example: `preset_file("hardware", "h100", "hardware")` is `recipes/hardware/h100.toml`.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from outrider.env import data_directory
from outrider.errors import ConfigError, RunError, nearest, on_one_line
from outrider.records.codec import from_plain
from outrider.records.display import shown

__all__ = ["preset_file", "read_record", "read_toml"]

T = TypeVar("T")


def preset_file(folder: str, name: str, what: str) -> Path:
    """Return `name` itself if it is a TOML file, else our file of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name.endswith(".toml"):
        return Path(name)
    known = {file.stem: file for file in sorted((data_directory("recipes") / folder).glob("*.toml"))}
    if name not in known:
        raise ConfigError(f"unknown {what} '{name}'{nearest(name, known)}, or give a .toml file")
    return known[name]


def read_toml(path: Path) -> dict[str, Any]:
    """Return the file's tables and values.

    Raises:
        ConfigError: if the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise ConfigError(f"{path} cannot be read ({on_one_line(str(error))}); give a TOML file") from error


def read_record(kind: type[T], table: Any, where: str) -> T:
    """Return a dataclass with the values of a table.

    Raises:
        ConfigError: for a field that is unknown, missing or of the wrong type, or a value that is no table.
    """
    assert dataclasses.is_dataclass(kind)
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {shown(table)}, not a table; write its settings under a heading in brackets")
    known = [field.name for field in dataclasses.fields(kind)]
    for name in table:
        if name not in known:
            raise ConfigError(f"{where} has no setting {shown(name)}{nearest(name, known)}")
    try:
        return from_plain(kind, dict(table))
    except RunError as error:
        flaw = str(error).partition(";")[0].replace(f"{kind.__name__}.", "the setting ")
        raise ConfigError(f"{where}: {flaw}") from error
