"""The methods, by name.

One file per method and one line here. A package of your own adds a method through the entry-point group
`outrider.proposers`:

    [project.entry-points."outrider.proposers"]
    my_method = "my_package.my_module:MyProposer"

Settings are the fields of the class's `Config`; an unknown one is an error that names the nearest known one. A
`Config` may name one field that a value without a name fills on a command line: `field(metadata={"bare": True})`.

Names are known in every usual spelling: `draft-model`, `draft_model` and `draft` are one method, `EAGLE-3` is `eagle3`.
A method whose weights ship with Outrider needs no checkpoint for the target that they were trained for.
"""

import dataclasses
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from outrider.errors import ConfigError, nearest
from outrider.loop.memory import give_back
from outrider.proposer import Proposer
from outrider.proposers.settings import checked_settings
from outrider.target import Target

__all__ = [
    "AUTO",
    "DEFAULT_HEAD",
    "DEFAULT_LOOKUP",
    "REGISTRY",
    "bare_setting",
    "configure",
    "known_method",
    "load_proposer",
    "method_name",
    "proposer_class",
    "proposer_names",
    "with_checkpoint",
]

REGISTRY: dict[str, str] = {
    "none": "outrider.proposers.none:NoProposer",
    "ngram": "outrider.proposers.ngram:NgramProposer",
    "suffix": "outrider.proposers.suffix:SuffixProposer",
    "draft_model": "outrider.proposers.draft_model:DraftModelProposer",
    "eagle3": "outrider.proposers.eagle3:Eagle3Proposer",
    "peagle": "outrider.proposers.peagle:PEagleProposer",
    "pard": "outrider.proposers.pard:PardProposer",
    "dflash": "outrider.proposers.dflash:DFlashProposer",
    "medusa": "outrider.proposers.medusa:MedusaProposer",
    "mtp": "outrider.proposers.mtp:MtpProposer",
    "hybrid": "outrider.proposers.hybrid:HybridProposer",
    "oracle": "outrider.proposers.oracle:OracleProposer",
}

AUTO = "auto"
"""The command line's default, in place of a method: one is picked for the target."""

PICKED = "outrider.proposers.auto:picked"
"""The function that picks it; that file reads this registry."""

DEFAULT_LOOKUP = "suffix"
"""The method where no head is at hand: it needs no weights."""

DEFAULT_HEAD = "eagle3"
"""The default head, alone and in a hybrid: of the shipped ones it is accepted most."""

ALIASES = {"draft": "draft_model"}


def proposer_names() -> list[str]:
    """Return every registered method, our own first."""
    own = list(REGISTRY)
    return own + sorted(entry.name for entry in _entry_points() if entry.name not in REGISTRY)


def method_name(text: str) -> str:
    """Return the registered name of a method in any usual spelling.

    >>> [method_name(text) for text in ("draft-model", "Draft", "EAGLE-3", "n-gram")]
    ['draft_model', 'draft_model', 'eagle3', 'ngram']

    Raises:
        ConfigError: if there is none; the message names the nearest.
    """
    found = known_method(text)
    if found is None:
        raise ConfigError(f"unknown method {str(text)!r}{nearest(str(text), proposer_names())}")
    return found


def known_method(text: str) -> str | None:
    """Return the same, None if there is no such method."""
    if text in list(REGISTRY):  # most names; installed packages are searched for the others only
        return text
    names = proposer_names()
    if text in names:
        return text
    spelled = {_squeezed(name): name for name in reversed(names)} | ALIASES
    return spelled.get(_squeezed(str(text)))


def _squeezed(text: str) -> str:
    return "".join(text.lower().replace("-", "").replace("_", "").split())


def proposer_class(name: str) -> type[Proposer]:
    """Return the class behind a name.

    Raises:
        ConfigError: if there is none; the message names the nearest.
    """
    name = method_name(name)
    path = REGISTRY.get(name) or {entry.name: entry.value for entry in _entry_points()}[name]
    module, _, attribute = path.partition(":")
    found = getattr(import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Proposer)):
        raise ConfigError(f"method '{name}' points to {path}, which is not an outrider Proposer class")
    return found


def bare_setting(name: str) -> str | None:
    """Return the setting that a value without a name fills, or None: `method:0.8` is then `method:setting=0.8`.

    Raises:
        ConfigError: if there is no such method.
    """
    fields = dataclasses.fields(proposer_class(name).Config)
    return next((field.name for field in fields if field.metadata.get("bare")), None)


def configure(name: str, settings: dict[str, Any]) -> Any:
    """Return the method's `Config` with these settings.

    Raises:
        ConfigError: for an unknown or missing setting, or a value its Config refuses.
    """
    config = proposer_class(name).Config
    try:
        return config(**checked_settings(name, config, settings))
    except TypeError as error:
        raise ConfigError(f"method '{name}': {error}") from error


def load_proposer(name: str, target: Target, **settings: Any) -> Proposer:
    """Build a proposer for a target.

    Examples: `load_proposer("ngram", target, max_n=4, num_nodes=8)`; `load_proposer("eagle3", target)` takes the head
    that is shipped for the target; `load_proposer("auto", target)` picks what is best known for it.

    Raises:
        ConfigError: for an unknown method or setting.
        CheckpointError: if its weights do not fit the target.
    """
    if name != AUTO:
        name = method_name(name)
    if not isinstance(target, Target):
        raise ConfigError(f"method '{name}' drafts for a loaded target, not {target!r}; pass load_target(...)")
    if name == AUTO:
        return _load_picked(target, settings)
    config = configure(name, settings)
    proposer = proposer_class(name).load(target, with_checkpoint(name, config, target))
    give_back()
    return proposer


def _load_picked(target: Target, settings: dict[str, Any]) -> Proposer:
    if settings:
        raise ConfigError(f"'{AUTO}' picks the settings too; leave out {', '.join(settings)}, or name a method")
    module, _, function = PICKED.partition(":")
    spec = getattr(import_module(module), function)(target).spec
    return load_proposer(spec.name, target, **spec.settings)


def with_checkpoint(name: str, config: Any, target: Target, spelled: str | None = None) -> Any:
    """Return a method's `Config` with the shipped head where it names no checkpoint, nor anything in its place.

    Args:
        spelled: the command line's way to name a checkpoint of it; by default `name:checkpoint=DIR`.

    Raises:
        ConfigError: if a checkpoint is needed and none is shipped for this target.
    """
    kind = proposer_class(name).shipped
    others = [field.name for field in dataclasses.fields(config) if field.metadata.get("instead") == "checkpoint"]
    if kind is None or any(getattr(config, key) is not None for key in ("checkpoint", *others)):
        return config
    from outrider.formats.shipped import shipped_head, short_name  # a method without weights must not wait for them

    head = shipped_head(kind, target)
    if head is None:
        raise ConfigError(_no_head(name, target, spelled or f"{name}:checkpoint=DIR", others))
    return dataclasses.replace(config, checkpoint=short_name(head))


def _no_head(name: str, target: Target, spelled: str, others: list[str]) -> str:
    from outrider.formats.locate import FETCH
    from outrider.formats.shipped import shipped_names

    ours = target.spec.name
    instead = "".join(f", or {name}:{other}=..." for other in others)
    at_hand = "" if shipped_names() else f"; no shipped heads are on this machine, and {FETCH}"
    return (
        f"method '{name}' needs the setting 'checkpoint', since no head of its kind is shipped for {ours}: "
        f"write {spelled} with a directory or hub id{instead}; `outrider drafters {ours}` lists what fits, and "
        f"'{AUTO}' in place of a method picks what is at hand{at_hand}"
    )


def _entry_points() -> Any:
    return entry_points(group="outrider.proposers")
