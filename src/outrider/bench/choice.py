"""A method and its settings, as written on a command line.

    name                              the method as it comes
    name:num_nodes=8,layers=0,1,2     with settings; a part without "=" belongs to the value before it
    name:0.8,num_nodes=8              a value without a name, first; some methods have a setting that it fills

Values take the type of the method's `Config`: `8` is a number for `num_nodes` and the text "8" for a path; several
numbers are written `0.9/0.7`. In a run, a method is called by its name alone unless the run holds several settings of
it.
"""

import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from outrider.errors import ConfigError
from outrider.proposer import Proposer
from outrider.proposers import bare_setting, configure, load_proposer, proposer_class
from outrider.target import Target

__all__ = ["Choice", "choices_of", "coerced", "load_choice", "split_settings"]


@dataclass(frozen=True)
class Choice:
    """What to run, and what to call it."""

    label: str
    name: str
    settings: dict[str, Any]


def choices_of(texts: Sequence[str]) -> list[Choice]:
    """Read several methods.

    Raises:
        ConfigError: for an unknown method or setting, or a value of the wrong type; names the nearest known one.
    """
    read = [(text, *split_settings(text, bare_setting(text.partition(":")[0].strip()))) for text in texts]
    times = Counter(name for _, name, _ in read)
    return [Choice(text if times[name] > 1 else name, name, _typed(name, settings)) for text, name, settings in read]


def load_choice(choice: Choice, target: Target) -> Proposer:
    """The proposer for a target.

    Raises:
        ConfigError, CheckpointError: as `outrider.load_proposer`.
    """
    return load_proposer(choice.name, target, **choice.settings)


def split_settings(text: str, bare: str | None = None) -> tuple[str, dict[str, str]]:
    """Name and settings, not yet typed; `bare` is the setting that a first value without a name fills.

    >>> split_settings("a_method:num_nodes=8,layers=0,1")
    ('a_method', {'num_nodes': '8', 'layers': '0,1'})
    >>> split_settings("a_method:0.8,num_nodes=8", bare="share")
    ('a_method', {'share': '0.8', 'num_nodes': '8'})
    """
    name, _, rest = text.partition(":")
    settings: dict[str, str] = {}
    key = ""
    for part in rest.split(",") if rest else []:
        found, equals, value = part.partition("=")
        if equals:
            key = found.strip()
            settings[key] = value.strip()
        elif key:
            settings[key] += f",{part.strip()}"
        elif bare is not None:
            key = bare
            settings[key] = part.strip()
        else:
            raise ConfigError(f"'{text}' has no setting before '{part}'; write {name}:setting=value")
    return name.strip(), settings


def _typed(name: str, settings: dict[str, str]) -> dict[str, Any]:
    hints = get_type_hints(proposer_class(name).Config)
    typed = {
        key: coerced(hints[key], value, f"method '{name}': {key}") if key in hints else value
        for key, value in settings.items()
    }
    configure(name, typed)
    return typed


def coerced(hint: Any, text: str, where: str) -> Any:
    """The value that `text` stands for, where a `hint` is wanted.

    Raises:
        ConfigError: if it is none.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if get_origin(kind) is tuple:
        return tuple(coerced(get_args(kind)[0], part, where) for part in text.split("/"))
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ConfigError(f"{where}={text} must be true or false")
        return BOOLEANS[text.lower()]
    if kind not in (int, float) or get_origin(kind) is Literal:
        return text
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{where}={text} must be {wanted}") from None


BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
