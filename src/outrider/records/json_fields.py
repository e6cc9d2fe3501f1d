"""JSON objects from untrusted files: one reader, and typed getters with precise errors.

A damaged file gives one sentence that names the file, the key, the value found and what belongs there. `read_json`
reads a file, `parse_json` a text; both give `Fields`, a read-only mapping with a getter per type:

    config = read_json(directory / "config.json")
    config.integer("vocab_size", low=1)                # required
    config.number("rope_theta", 10_000.0, above=0.0)   # a default, for a key that is absent or null
    config.section("eagle_config", {}).integers("eagle_aux_hidden_state_layer_ids", None, low=0)

A value of another type is never converted: `"64"` is not 64, true is not 1, 64.0 is not 64. Numbers are finite. A key
that occurs twice with two values is refused, because parsers differ in which one they keep.

Example: `{"vocab_size": "64"}` raises "config.json: vocab_size is '64' but must be an integer of at least 1; download
the file again".
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, final

from outrider.errors import CheckpointError, OutriderError, nearest, on_one_line
from outrider.records.display import shown_json

__all__ = ["DOWNLOAD", "REQUIRED", "Fields", "parse_json", "parse_value", "read_json"]

D = TypeVar("D")
DOWNLOAD: Final = "download the file again"
REQUIRED: Final[Any] = object()
"""Default of a getter whose key must be present."""
MAX_BYTES: Final = 256 * 2**20
MAX_INTEGER: Final = 2**53


def read_json(
    path: Path, error: type[OutriderError] = CheckpointError, remedy: str = DOWNLOAD, max_bytes: int = MAX_BYTES
) -> "Fields":
    """Return the JSON object in a file.

    Raises:
        OutriderError: of the class `error`, if the file is missing, cannot be read, or is not one JSON object.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise error(f"{path} has {path.stat().st_size} bytes, more than {max_bytes} for a JSON file; {remedy}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist; {remedy}") from None
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read ({on_one_line(str(reason))}); {remedy}") from reason
    return parse_json(data, str(path), error, remedy)


def parse_json(
    data: str | bytes, where: str, error: type[OutriderError] = CheckpointError, remedy: str = DOWNLOAD
) -> "Fields":
    """Parse a JSON object; `where` names it in messages, such as "data.jsonl, line 3"."""
    value = parse_value(data, where, error, remedy)
    if not isinstance(value, dict):
        raise error(f"{where} holds {_kind(value)}, not a JSON object; {remedy}")
    return Fields(value, where, error, remedy)


def parse_value(
    data: str | bytes, where: str, error: type[OutriderError] = CheckpointError, remedy: str = DOWNLOAD
) -> Any:
    """Parse any JSON value."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        # JSON itself allows a key to occur twice
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as reason:
        raise error(f"{where} is not UTF-8 text (byte {reason.start}); {remedy}") from reason
    except RecursionError as reason:
        raise error(f"{where} nests deeper than JSON files do; {remedy}") from reason
    except ValueError as reason:
        raise error(f"{where} cannot be read as JSON ({on_one_line(str(reason))}); {remedy}") from reason


@final
class Fields(Mapping[str, Any]):
    """A JSON object with typed getters. As a mapping it holds the raw values.

    Attributes:
        where: the file, and the path of keys inside it, for messages.
        error: class of every exception raised here.
        remedy: end of every message.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        error: type[OutriderError] = CheckpointError,
        remedy: str = DOWNLOAD,
        prefix: str = "",
    ) -> None:
        self._values = values
        self._prefix = prefix
        self.where = where
        self.error = error
        self.remedy = remedy

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def plain(self) -> dict[str, Any]:
        """Return the values as a new dictionary."""
        return dict(self._values)

    def integer(self, key: str, default: D = REQUIRED, *, low: int = -MAX_INTEGER, high: int = MAX_INTEGER) -> int | D:
        """Return an integer within low .. high."""
        value = self._get(key, default)
        if value is None:
            return default
        return self._integer(key, value, low, high)

    def number(
        self,
        key: str,
        default: D = REQUIRED,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        above: float = -math.inf,
    ) -> float | D:
        """Return a finite number within low .. high and greater than `above`, an integer as a float."""
        value = self._get(key, default)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, f"a number{_range(low, high, above)}")
        # float() of an integer of 400 digits would raise
        number = float(value) if abs(value) < 1e300 else math.inf
        if not math.isfinite(number) or not low <= number <= high or number <= above:
            self.refuse(key, f"a number{_range(low, high, above)}")
        return number

    def flag(self, key: str, default: D = REQUIRED) -> bool | D:
        """Return true or false."""
        value = self._get(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def text(self, key: str, default: D = REQUIRED, *, choices: Collection[str] = ()) -> str | D:
        """Return a string without lone surrogates, one of `choices` if any are given."""
        value = self._get(key, default)
        if value is None:
            return default
        if not isinstance(value, str) or _is_broken(value):
            self.refuse(key, "a string")
        if choices and value not in choices:
            raise self.error(f"{self.where}: {self.name(key)} is {shown_json(value)}{nearest(value, choices)}")
        return value

    def section(self, key: str, default: D = REQUIRED) -> "Fields | D":
        """Return the object under a key; a mapping as default becomes `Fields` too."""
        value = self._get(key, default)
        if value is None:
            return self._inner(key, default) if isinstance(default, Mapping) else default
        if not isinstance(value, Mapping):
            self.refuse(key, "a JSON object")
        return self._inner(key, value)

    def array(self, key: str, default: D = REQUIRED, *, length: int | None = None) -> list[Any] | D:
        """Return a list of any values, of this length if one is given."""
        value = self._get(key, default)
        if value is None:
            return default
        if not isinstance(value, list) or (length is not None and len(value) != length):
            self.refuse(key, "a list" if length is None else f"a list of {length} entries")
        return list(value)

    def integers(
        self,
        key: str,
        default: D = REQUIRED,
        *,
        low: int = -MAX_INTEGER,
        high: int = MAX_INTEGER,
        length: int | None = None,
    ) -> list[int] | D:
        """Return a list of integers within low .. high."""
        values = self.array(key, default, length=length)
        if not isinstance(values, list) or values is default:
            return values
        return [self._integer(f"{key}[{place}]", value, low, high) for place, value in enumerate(values)]

    def texts(self, key: str, default: D = REQUIRED) -> list[str] | D:
        """Return a list of strings."""
        values = self.array(key, default)
        if not isinstance(values, list) or values is default:
            return values
        for place, value in enumerate(values):
            if not isinstance(value, str) or _is_broken(value):
                self._refuse_value(f"{key}[{place}]", value, "a string")
        return list(values)

    def sections(self, key: str, default: D = REQUIRED) -> "list[Fields] | D":
        """Return a list of objects."""
        values = self.array(key, default)
        if not isinstance(values, list) or values is default:
            return values
        for place, value in enumerate(values):
            if not isinstance(value, Mapping):
                self._refuse_value(f"{key}[{place}]", value, "a JSON object")
        return [self._inner(f"{key}[{place}]", value) for place, value in enumerate(values)]

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise an error that says which value a key must have."""
        if key not in self._values:
            raise self.error(f"{self.where} has no {self.name(key)}, which must be {expected}; {self.remedy}")
        self._refuse_value(key, self._values[key], expected)

    def name(self, key: str) -> str:
        """Return a key with its path of sections, for messages."""
        full = self._prefix + key
        return full if full.isascii() and full.isprintable() and len(full) <= 120 else shown_json(full)

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is None and default is REQUIRED:
            found = "is null" if key in self._values else "is missing"
            raise self.error(f"{self.where}: {self.name(key)} {found}; {self.remedy}")
        return value

    def _integer(self, key: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._refuse_value(key, value, f"an integer{_range(low, high)}")
        return value

    def _inner(self, key: str, values: Mapping[str, Any]) -> "Fields":
        return Fields(values, self.where, self.error, self.remedy, f"{self._prefix}{key}.")

    def _refuse_value(self, key: str, value: object, expected: str) -> NoReturn:
        raise self.error(f"{self.where}: {self.name(key)} is {shown_json(value)} but must be {expected}; {self.remedy}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        for key, value in pairs:
            if values[key] != value:
                raise ValueError(f"the key {shown_json(key)} occurs twice, with two values")
    return values


def _range(low: float, high: float, above: float = -math.inf) -> str:
    has_low, has_high = low > -MAX_INTEGER, high < MAX_INTEGER
    if has_low and has_high:
        return f" from {low} to {high}"
    parts = [f" of at least {low}"] * has_low + [f" of at most {high}"] * has_high
    return "".join(parts) + (f" greater than {above:g}" if above > -math.inf else "")


def _is_broken(text: str) -> bool:
    """Return whether the text holds a lone surrogate, which no encoding can write."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
