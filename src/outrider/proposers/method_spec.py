"""A method and its settings, as written on a command line.

    name                              the method with its default settings
    name:num_nodes=8,layers=0,1,2     with settings; a part without "=" belongs to the value before it
    name:0.8,num_nodes=8              a value without a name, first; some methods have a setting that it fills

Values take the type of the method's `Config`: `8` is a number for `num_nodes` and the text "8" for a path; several
numbers are written `0.9/0.7`. In a run, a method is called by its name alone unless the run holds several settings of
it. Names have every spelling that `outrider.proposers.method_name` accepts, and `num-nodes` is `num_nodes`.

Every command reads methods here: generate, bench, profile, plan, synthesize, and export where it is given a method in
place of a checkpoint.
"""

import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from outrider.errors import ConfigError
from outrider.formats.locate import locate
from outrider.proposer import Proposer
from outrider.proposers import (
    bare_setting,
    configure,
    known_method,
    load_proposer,
    method_name,
    proposer_class,
    with_checkpoint,
)
from outrider.target import Target

__all__ = [
    "MethodSpec",
    "coerced",
    "exported_checkpoint",
    "load_method",
    "method_specs",
    "spelled",
    "split_settings",
    "with_heads",
    "written",
]


@dataclass(frozen=True)
class MethodSpec:
    """A method to run, its settings, and its name in tables."""

    label: str
    name: str
    settings: dict[str, Any]


def method_specs(texts: Sequence[str]) -> list[MethodSpec]:
    """Read several methods.

    Raises:
        ConfigError: for an unknown method or setting, or a value of the wrong type; names the nearest known one.
    """
    known = [method_name(text.partition(":")[0].strip()) + "".join(text.partition(":")[1:]) for text in texts]
    read = [(text, *split_settings(text, bare_setting(text.partition(":")[0]))) for text in known]
    times = Counter(name for _, name, _ in read)
    return [
        MethodSpec(text if times[name] > 1 else name, name, _typed(name, settings)) for text, name, settings in read
    ]


def spelled(text: str) -> str:
    """Return a method as written, under its registered name; text that names no method stays as it is.

    >>> spelled("draft-model:num_nodes=3"), spelled("of another engine")
    ('draft_model:num_nodes=3', 'of another engine')
    """
    name, colon, rest = text.partition(":")
    return (known_method(name.strip()) or name) + colon + rest


def written(spec: MethodSpec) -> str:
    """Return a method with its settings as `method_specs` reads them.

    >>> written(MethodSpec("a_method", "a_method", {"num_nodes": 8, "layers": "0,1", "shares": (0.9, 0.7)}))
    'a_method:num_nodes=8,layers=0,1,shares=0.9/0.7'
    """
    settings = (f"{key}={_text_of(value)}" for key, value in spec.settings.items())
    return ":".join(part for part in (spec.name, ",".join(settings)) if part)


def _text_of(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_text_of, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def with_heads(choices: Sequence[MethodSpec], target: Target) -> list[MethodSpec]:
    """Return the same choices, each with the checkpoint that it runs with: where it names none, the shipped head.

    Raises:
        ConfigError: if a checkpoint is needed and none is shipped for this target.
    """
    found = []
    for choice in choices:
        config = configure(choice.name, choice.settings)
        settled = asdict(with_checkpoint(choice.name, config, target)).get("checkpoint")
        settings = choice.settings | ({} if settled is None else {"checkpoint": settled})
        found.append(replace(choice, settings=settings))
    return found


def exported_checkpoint(text: str, target: Target) -> Path:
    """Return the checkpoint that a text stands for: a directory, a hub id, a shipped head, or the head of a method.

    Raises:
        ConfigError: for a method without weights of its own, or without a shipped head for this target.
        CheckpointError: if there is no such checkpoint.
    """
    if known_method(text.partition(":")[0].strip()) is None or Path(text).is_dir():
        return locate(text)
    [choice] = with_heads(method_specs([text]), target)
    config = configure(choice.name, choice.settings)
    if proposer_class(choice.name).shipped is None or config.checkpoint is None:
        raise ConfigError(f"method '{text}' has no weights of its own to export; give the directory of a checkpoint")
    return locate(config.checkpoint)


def load_method(choice: MethodSpec, target: Target) -> Proposer:
    """Load the proposer for a target.

    Raises:
        ConfigError, CheckpointError: as `outrider.load_proposer`.
    """
    return load_proposer(choice.name, target, **choice.settings)


def split_settings(text: str, bare: str | None = None) -> tuple[str, dict[str, str]]:
    """Split a text into name and untyped settings; `bare` is the setting that a first value without a name fills.

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
            key = found.strip().replace("-", "_")
            if not key or key in settings:
                raise ConfigError(f"'{text}' {f'gives {key} twice' if key else 'has a value without a setting'}")
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
    """Convert `text` to the type that `hint` names.

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
