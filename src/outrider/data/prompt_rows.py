"""Rows of prompts: JSON lines, a JSON array or one JSON object, plain or compressed by gzip, and data sets of the hub.

    hub:openai/gsm8k@main:test:question      name, optional @configuration, split, field; needs `outrider[datasets]`

Lines are read as they are needed, so a file may be larger than memory; an array is read whole. Every error names the
file and the line, or the row of an array. Only a newline ends a line: JSON text may hold the other line separators.

The field of a data set holds a text, a list of texts, which are the turns of a conversation, or a list of messages;
columns that hold the rest of a prompt, such as "input" beside "instruction", are read with it.

A key that stands twice in one object is refused, because readers differ in which value they take.

Example: `next(read_prompt_rows(Path("p.jsonl")))` is `PromptRow("p.jsonl:1", 1, {"prompt": "Why?"})`.
"""

import gzip
import importlib.util
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

from outrider.data.prompt_layouts import PromptRow, is_beside_a_request
from outrider.errors import ConfigError

__all__ = ["HUB_PREFIX", "HubPlace", "hub_fields", "parse_hub", "prompt_rows", "read_prompt_rows"]

HUB_PREFIX: Final = "hub:"
GZIP: Final = b"\x1f\x8b"
UTF8_MARK: Final = b"\xef\xbb\xbf"
FOREIGN: Final = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"ARROW1": "an Arrow file",
}
REMEDY: Final = "give JSON lines in UTF-8"


def read_prompt_rows(path: Path) -> Iterator[PromptRow]:
    """Yield the rows of a file; blank lines are skipped.

    Raises:
        ConfigError: if the file cannot be read or a row is not a JSON object; names the line.
    """
    try:
        with path.open("rb") as file:
            start = file.peek(8)
            for mark, kind in FOREIGN.items():
                if start.startswith(mark):
                    raise ConfigError(f"the prompts in {path} cannot be read: the file is {kind}; {REMEDY}")
            is_compressed = start.startswith(GZIP)
            yield from _rows(cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_compressed else file, path)
    except (OSError, EOFError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"the prompts in {path} cannot be read ({reason}); {REMEDY}") from error


def _rows(file: BinaryIO, path: Path) -> Iterator[PromptRow]:
    is_first = True
    for number, raw in enumerate(file, start=1):
        line = raw.removeprefix(UTF8_MARK) if number == 1 else raw
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if is_first and (line.lstrip().startswith(b"[") or line.strip() == b"{"):
            yield from _document(line + file.read(), path, number)
            return
        is_first = False
        yield _row(_parsed(line, where), where, number)


def _document(data: bytes, path: Path, first: int) -> Iterator[PromptRow]:
    """Yield the rows of a file that is one JSON value over several lines, which begins at line `first`."""
    value = _parsed(data, f"{path}:{first}", first)
    if isinstance(value, dict):
        yield _row(value, f"{path}:{first}", first)
        return
    for number, fields in enumerate(value, start=1):
        yield _row(fields, f"{path} row {number}", number)


def _row(value: Any, where: str, number: int) -> PromptRow:
    if not isinstance(value, dict):
        raise ConfigError(f'{where} is not a JSON object; a prompt looks like {{"prompt": "..."}}')
    return PromptRow(where, number, value)


def _parsed(data: bytes, where: str, first_line: int | None = None) -> Any:
    """Parse a JSON value; `first_line` is the number of its first line if it has more than one."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the prompts in {where.rpartition(':')[0]} cannot be read: {where} is not UTF-8 (byte {error.start} is "
            f"0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        line = "" if first_line is None else f"line {first_line + error.lineno - 1}, "
        place = error.pos if first_line is None else error.colno - 1
        raise ConfigError(f"{where} is not JSON ({error.msg} at {line}character {place}); mend the line") from error
    except RecursionError as error:
        raise ConfigError(f"{where} nests deeper than any prompt does; mend the line") from error
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON that can be read ({error!s:.120}); mend the line") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen = [key for key, _ in pairs]
        twice = next(key for key in seen if seen.count(key) > 1)
        raise ValueError(f"it uses the key {twice!r:.40} twice")
    return fields


class HubPlace(NamedTuple):
    """The place of a column of prompts on the hub."""

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


def hub_fields(place: str, also: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
    """Yield the request of each row, in order: the value of the field, and what may belong to it.

    Args:
        also: further columns to read, where the data set has them.

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
    others = [
        name for name in rows.column_names if name != wanted.field and (is_beside_a_request(name) or name in also)
    ]
    columns = {name: rows[name] for name in others}
    for at, value in enumerate(rows[wanted.field]):
        yield {_layout(value): value} | {name: columns[name][at] for name in others}


def _layout(value: Any) -> str:
    """Return the key under which a row of a file would hold this value."""
    if isinstance(value, list):
        return "messages" if value and isinstance(value[0], Mapping) else "turns"
    return "prompt"
