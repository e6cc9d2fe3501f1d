"""Settings given by name: which there are, which are missing, and whether each value is of its type.

A method's settings are the fields of its `Config`, a frozen keyword-only dataclass whose type hints say what a field
takes. Values are checked, never converted from text; that is what a command line's reader does beforehand
(`outrider.proposers.method_spec`). Numbers of NumPy count as numbers, a path as text, a list as a
tuple, and a list of whole numbers as the text "0,1,2".

Example: with `num_nodes: int`, 8 is taken as it is; "8", 8.5 and True are refused by name.
"""

import dataclasses
import math
import operator
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from outrider.cache import Window
from outrider.errors import ConfigError, nearest

__all__ = ["check_bounds", "check_window", "checked_settings", "window_of"]

WORDS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def check_bounds(config: Any, **bounds: tuple[float, float]) -> None:
    """Refuse a setting outside its bounds, both included; None is always within.

    Raises:
        ConfigError: for the first setting that is outside.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{name}={value} must be between {low} and {high}")


NUM_SINKS = 4
"""Attention sinks of a window by default (Xiao et al., arXiv 2309.17453)."""


class Windowed(Protocol):
    """Settings of a head that may read a window of the text."""

    @property
    def window(self) -> int | None: ...

    @property
    def sinks(self) -> int | None: ...


def check_window(config: Windowed) -> None:
    """Refuse a window outside its bounds, and sinks without a window.

    Raises:
        ConfigError: for the first setting that is wrong.
    """
    check_bounds(config, window=(1, 1_000_000), sinks=(0, 1024))
    if config.sinks is not None and config.window is None:
        raise ConfigError(f"sinks={config.sinks} belongs to a window; set window=512 too, or leave sinks out")


def window_of(config: Windowed, windows: Sequence[int | None]) -> Window | None:
    """Return the positions that a head reads, None for all.

    Args:
        windows: the sliding window of each of the head's layers.

    Raises:
        ConfigError: for a window on a head of several layers, or one that has a sliding window of its own.
    """
    if config.window is not None and len(windows) > 1:
        raise ConfigError(
            f"window={config.window} works with heads of one layer, and this one has {len(windows)}; leave window out"
        )
    own = next((window for window in windows if window is not None), None)
    if config.window is not None and own is not None:
        raise ConfigError(
            f"window={config.window} is for heads that read the whole text, and this one has a sliding window of {own}"
            " positions of its own; leave window out"
        )
    if config.window is None:
        return None
    return Window(config.window, NUM_SINKS if config.sinks is None else config.sinks)


def checked_settings(method: str, config: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method, each of its field's type.

    Raises:
        ConfigError: for an unknown or missing setting, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in settings:
        if not fields:
            raise ConfigError(f"method '{method}' has no settings, but '{key}' was given")
        if key not in fields:
            raise ConfigError(f"method '{method}' has no setting '{key}'{nearest(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in settings:
            raise ConfigError(
                f"method '{method}' needs the setting '{name}': write {method}:{name}=VALUE; "
                f"its settings are {', '.join(fields)}"
            )
    hints = get_type_hints(config)
    return {key: _taken(hints[key], value, f"method '{method}': {key}={value!r}") for key, value in settings.items()}


def _taken(hint: Any, value: Any, where: str) -> Any:
    """Return a value in the type of its hint; hints of other kinds accept every value."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    # Optional[X] is checked as X.
    kind = next(kind for kind in kinds if kind is not type(None))
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_taken(get_args(kind)[0], item, where) for item in value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{where} must be one of {', '.join(map(str, get_args(kind)))}")
        return value
    return _scalar(kind, value, where) if kind in WORDS else value


def _scalar(kind: type[Any], value: Any, where: str) -> Any:
    is_flag = isinstance(value, bool)
    if kind is bool and is_flag:
        return value
    if kind is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if kind is str and isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
        return ",".join(map(str, value))
    if kind is int and not is_flag:
        try:
            return operator.index(value)
        except TypeError:
            pass
    if kind is float and not is_flag and isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise ConfigError(f"{where} must be {WORDS[kind]}")
