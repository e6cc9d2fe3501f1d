"""The `config.json` of a run: what it is, so that nobody resumes it as something else.

    method, settings, train   what was asked for, by name
    target, data              what it was asked of: fingerprints and hashes
    num_processes             gradients are summed in another order with another number
    options                   how the command line found these; `--resume` reads them back
    provenance                commit, hardware, versions

Example: resuming with `--learning-rate 1e-3` a run that was started with 1e-4 is refused: "train.learning_rate".
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from outrider.errors import RunError
from outrider.formats.store import read_json
from outrider.train.files import write_text

__all__ = ["RECORD", "adopt", "plain", "read_record", "rebuilt"]

RECORD = "config.json"
SCHEMA = "outrider.train/1"
FREE = ("options", "provenance")

T = TypeVar("T")


def adopt(directory: Path, record: Mapping[str, Any], resume: bool) -> None:
    """Write the record of a new run, or check that of the run that is resumed.

    Raises:
        RunError: if the directory is not empty, or the run is another one; names the first difference.
    """
    now = plain({"schema": SCHEMA, **record})
    if resume:
        started = read_record(directory)
        if difference := _difference("", _bound(started), _bound(now)):
            raise RunError(f"{directory} was started with {difference}; resume it unchanged or start a new run")
        return
    strangers = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    strangers = [name for name in strangers if not name.startswith(".")]
    if strangers:
        raise RunError(f"{directory} already holds '{strangers[0]}'; resume it with --resume, or give a new --run-dir")
    write_text(directory / RECORD, json.dumps(now, indent=2, sort_keys=True) + "\n")


def read_record(directory: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        RunError: if there is no run.
    """
    if not (directory / RECORD).is_file():
        raise RunError(f"{directory} holds no training run ({RECORD} is missing); give the directory of one")
    return read_json(directory / RECORD)


def plain(value: Any) -> Any:
    """Dataclasses become dicts, tuples lists, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def rebuilt(kind: type[T], values: Mapping[str, Any]) -> T:
    """A flat dataclass from its record."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _bound(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in FREE}


def _difference(place: str, started: Any, now: Any) -> str | None:
    if isinstance(started, dict) and isinstance(now, dict):
        pairs = ((key, started.get(key), now.get(key)) for key in sorted(started.keys() | now.keys()))
        found = (_difference(f"{place}.{key}" if place else key, *sides) for key, *sides in pairs)
        return next((one for one in found if one), None)
    return None if started == now else f"{place}={started}, not {now}"
