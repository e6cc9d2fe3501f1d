"""The methods, by name.

One file per method and one line here. A package of your own adds a method through the entry-point group
`outrider.proposers`:

    [project.entry-points."outrider.proposers"]
    my_method = "my_package.my_module:MyProposer"

Settings are the fields of the class's `Config`; an unknown one is an error that names the nearest known one. A
`Config` may name one field that a value without a name fills on a command line: `field(metadata={"bare": True})`.
"""

import dataclasses
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from outrider.errors import ConfigError, nearest
from outrider.memory import give_back
from outrider.proposer import Proposer
from outrider.target import Target

__all__ = [
    "DEFAULT_METHOD",
    "REGISTRY",
    "bare_setting",
    "configure",
    "load_proposer",
    "proposer_class",
    "proposer_names",
]

REGISTRY: dict[str, str] = {
    "none": "outrider.proposers.none:NoProposer",
    "ngram": "outrider.proposers.ngram:NgramProposer",
    "suffix": "outrider.proposers.suffix:SuffixProposer",
    "draft_model": "outrider.proposers.draft_model:DraftModelProposer",
    "eagle3": "outrider.proposers.eagle3:Eagle3Proposer",
    "pard": "outrider.proposers.pard:PardProposer",
    "medusa": "outrider.proposers.medusa:MedusaProposer",
    "mtp": "outrider.proposers.mtp:MtpProposer",
    "hybrid": "outrider.proposers.hybrid:HybridProposer",
    "oracle": "outrider.proposers.oracle:OracleProposer",
}

DEFAULT_METHOD = "ngram"
"""What the command line generates with: it needs no weights, and costs next to nothing where it does not help."""


def proposer_names() -> list[str]:
    """Every registered method, our own first."""
    own = list(REGISTRY)
    return own + sorted(entry.name for entry in _entry_points() if entry.name not in REGISTRY)


def proposer_class(name: str) -> type[Proposer]:
    """The class behind a name.

    Raises:
        ConfigError: if there is none; the message names the nearest.
    """
    paths = {entry.name: entry.value for entry in _entry_points()} | REGISTRY
    if name not in paths:
        raise ConfigError(f"unknown method '{name}'{nearest(name, paths)}")
    module, _, attribute = paths[name].partition(":")
    found = getattr(import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Proposer)):
        raise ConfigError(f"method '{name}' points to {paths[name]}, which is not an outrider Proposer class")
    return found


def bare_setting(name: str) -> str | None:
    """The setting that a value without a name fills, or None: `method:0.8` is then `method:setting=0.8`.

    Raises:
        ConfigError: if there is no such method.
    """
    fields = dataclasses.fields(proposer_class(name).Config)
    return next((field.name for field in fields if field.metadata.get("bare")), None)


def configure(name: str, settings: dict[str, Any]) -> Any:
    """The method's `Config` with these settings.

    Raises:
        ConfigError: for an unknown setting, or a value its Config refuses.
    """
    config = proposer_class(name).Config
    known = {field.name for field in dataclasses.fields(config)}
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"method '{name}' has no setting '{key}'{nearest(key, known)}" if known else _no_settings(name, key)
            )
    try:
        return config(**settings)
    except TypeError as error:
        raise ConfigError(f"method '{name}': {error}") from error


def load_proposer(name: str, target: Target, **settings: Any) -> Proposer:
    """Build a proposer for a target.

    Example: `load_proposer("ngram", target, max_n=4, num_nodes=8)`.

    Raises:
        ConfigError: for an unknown method or setting.
        CheckpointError: if its weights do not fit the target.
    """
    proposer = proposer_class(name).load(target, configure(name, settings))
    give_back()
    return proposer


def _entry_points() -> Any:
    return entry_points(group="outrider.proposers")


def _no_settings(name: str, key: str) -> str:
    return f"method '{name}' has no settings, but '{key}' was given"
