"""The `config.json` of a run: its identity, so that it is not resumed as something else.

    method, settings, train   the request, by name
    target, data              fingerprints and hashes
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

from outrider.errors import ConfigError, RunError, on_one_line
from outrider.records.codec import from_plain
from outrider.records.files import write_text
from outrider.records.json_fields import read_json

__all__ = ["RECORD", "SCHEMA", "adopt", "checked_settings", "plain", "read_record"]

RECORD = "config.json"
SCHEMA = "outrider.train/1"
FREE = ("options", "provenance")
REMEDY = "restore that file, or start a new run"

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
            raise RunError(
                f"{directory} was started with {on_one_line(difference)}; resume it unchanged or start a new run"
            )
        return
    strangers = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    strangers = [name for name in strangers if not name.startswith(".")]  # the lock is ours
    if strangers:
        raise RunError(f"{directory} already holds '{strangers[0]}'; resume it with --resume, or give a new --run-dir")
    write_text(directory / RECORD, json.dumps(now, indent=2, sort_keys=True) + "\n")


def read_record(directory: Path) -> dict[str, Any]:
    """Return the record of a run.

    Raises:
        RunError: if there is no run, or its record is damaged; names what is wrong.
    """
    if not (directory / RECORD).is_file():
        raise RunError(f"{directory} holds no training run ({RECORD} is missing); give the directory of one")
    record = read_json(directory / RECORD, RunError, REMEDY)
    if record.text("schema") != SCHEMA:
        record.refuse("schema", f"'{SCHEMA}' for this version")
    record.text("method")
    for name in ("settings", "train", "options", "target", "data", "provenance"):
        record.section(name)
    found = record.plain()
    return found | {"train": {"optimizer": "adamw", **found["train"]}}  # an older record names no optimiser: AdamW


def checked_settings(kind: type[T], record: Mapping[str, Any], part: str, directory: Path) -> T:
    """Rebuild the settings `kind` from a part of a record.

    Raises:
        RunError: naming the setting that is damaged.
    """
    try:
        return from_plain(kind, record[part])
    except (RunError, ConfigError) as error:
        raise RunError(f"{directory / RECORD}, '{part}': {str(error).partition(';')[0]}; {REMEDY}") from error


def plain(value: Any) -> Any:
    """Turn dataclasses into dicts, tuples into lists, paths into strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _bound(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal.

    An older record names no kind of weights: the target was widened to its dtype; and no choice about the output
    head: it was trained.
    """
    target = dict(record.get("target", {}))
    return {key: value for key, value in record.items() if key not in FREE} | {
        "target": {"weights": target.get("dtype"), **target},
        "settings": {"train_head": True, **record.get("settings", {})},
    }


def _difference(place: str, started: Any, now: Any) -> str | None:
    if isinstance(started, dict) and isinstance(now, dict):
        pairs = ((key, started.get(key), now.get(key)) for key in sorted(started.keys() | now.keys()))
        found = (_difference(f"{place}.{key}" if place else key, *sides) for key, *sides in pairs)
        return next((one for one in found if one), None)
    return None if started == now else f"{place}={started}, not {now}"
