"""Frozen dataclasses as JSON and back, checked against their annotations.

Benchmark files are trees of dataclasses, tuples, mappings and plain values. `to_plain` turns such a tree into values
that `json` can write. `from_plain` rebuilds it from the annotations, so a file of another version, or one edited by
hand, is either understood or refused with the place of the first fault.

    unknown fields   ignored on reading: a later version may add some
    missing fields   take their default; without one they are an error
    not finite       NaN and infinities are written as null: JSON has no such numbers

Example: `from_plain(Interval, {"point": 1.9, "low": 1.7, "high": 2.1})` is `Interval(point=1.9, low=1.7, high=2.1)`;
with `"low": "1.7"` it is a RunError that names `low`.
"""

import dataclasses
import json
import math
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from outrider.errors import RunError, on_one_line
from outrider.records.display import shown

__all__ = ["dumps", "from_plain", "loads", "parsed", "to_plain"]

T = TypeVar("T")
LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")
LARGEST_INT, LARGEST_FLOAT = 2**63, 1e300


def to_plain(value: Any) -> Any:
    """Return a value for `json`: dataclasses and mappings as dicts, tuples as lists, non-finite numbers as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(value: Any) -> str:
    """Return one line of JSON, without characters such as U+2028 that end a line for some readers."""
    text = json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    return LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def loads(kind: type[T], text: str) -> T:
    """Read one JSON document as a `kind`.

    Raises:
        RunError: if the text is not JSON, or does not fit; names the field.
    """
    return from_plain(kind, parsed(text, f"a {kind.__name__}"))


def parsed(text: str, what: str) -> Any:
    """Return the value of a JSON document; `what` names it in messages.

    Raises:
        RunError: if the text is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{what} cannot be read: not JSON at character {error.pos} ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise RunError(f"{what} cannot be read: not JSON ({type(error).__name__})") from error


def from_plain(kind: type[T], value: Any) -> T:
    """Rebuild a `kind` from the output of `to_plain`.

    Raises:
        RunError: naming the field that is missing or of the wrong type.
    """
    built: T = _build(kind, value, kind.__name__)
    return built


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _build_union(args, value, where)
    if origin is Literal:
        return _checked(value in args, value, where, f"one of {', '.join(map(repr, args))}")
    if origin is tuple:
        return _build_tuple(args, value, where)
    if origin in (dict, Mapping):
        _checked(isinstance(value, dict), value, where, "an object")
        return {key: _build(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    return _build_scalar(kind, value, where)


def _build_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    others = [arg for arg in args if arg is not type(None)]
    assert len(others) == 1, f"{where}: only unions with None are read"
    return _build(others[0], value, where)


def _build_tuple(args: tuple[Any, ...], value: Any, where: str) -> Any:
    _checked(isinstance(value, list), value, where, "a list")
    assert args[1:] == (Ellipsis,), f"{where}: only homogeneous tuples are read"
    return tuple(_build(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    _checked(isinstance(value, dict), value, where, "an object")
    hints = get_type_hints(kind)
    required = {field.name for field in dataclasses.fields(kind) if _is_required(field)}
    if missing := sorted(required - set(value)):
        raise RunError(
            f"{on_one_line(where)} lacks the field '{missing[0]}'; the file is damaged or of another version"
        )
    names = [field.name for field in dataclasses.fields(kind) if field.init and field.name in value]
    return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in names})


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _build_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float:
        return float(_checked(_is_number(value), value, where, "a number"))
    if kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
        return _checked(fits, value, where, "a whole number")
    if kind is Path:
        return Path(_build_scalar(str, value, where))
    if kind is str:
        fits = isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
        return _checked(fits, value, where, "a string")
    return _checked(isinstance(value, kind), value, where, {bool: "true or false"}[kind])


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= LARGEST_FLOAT


def _checked(fits: bool, value: Any, where: str, wanted: str) -> Any:
    if not fits:
        raise RunError(
            f"{on_one_line(where)} is {shown(value)} but must be {wanted}; the file is damaged or of another version"
        )
    return value
