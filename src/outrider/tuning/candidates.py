"""Candidates: every drafter that fits the target, with the settings that are worth predicting.

They come from `outrider.catalogue.drafters`, from installed packages, and from the user. A *family* is a method with
all settings but the number of nodes. What is not ready, or does not load, is refused with the reason before it costs
any time.

    eagle3                          num_nodes 1, 2, 3, 4, 5
    eagle3:width=2,depth=3          num_nodes 6
    ngram:min_n=1,max_n=3           num_nodes 2, 3, 4, 6, 8

The settings stand in `recipes/tune/settings.toml`.

Example: `find_candidates(target, ("heads/mine",)).refused` says which methods cannot read that directory, and why.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, NamedTuple

from outrider.catalogue.drafters import Drafter, drafters_of
from outrider.env import data_directory
from outrider.errors import CheckpointError, ConfigError, OutriderError, on_one_line
from outrider.formats.locate import CONFIG, locate
from outrider.formats.store import check_target
from outrider.proposer import Proposer
from outrider.proposers import REGISTRY, known_method, proposer_class, proposer_names
from outrider.proposers.method_spec import load_method, method_specs, split_settings
from outrider.records.json_fields import read_json
from outrider.records.presets import read_record, read_toml
from outrider.target import Target

__all__ = ["Candidates", "Family", "Refused", "Setting", "find_candidates", "loaded"]

OTHERS: Final = "others"
CHECKPOINT: Final = "checkpoint"
NODES: Final = "num_nodes"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A method and all its settings but the number of nodes.

    base     method with these settings, as on a command line
    depths   numbers of nodes, rising; empty for a method without that setting
    deepest  proposer with the most nodes
    """

    base: str
    depths: tuple[int, ...]
    deepest: Proposer

    @property
    def settings(self) -> tuple["Setting", ...]:
        """Every setting to predict."""
        return tuple(Setting(self.text(depth), self.base, depth) for depth in self.depths or (0,))

    def text(self, depth: int) -> str:
        """Return the method with one number of nodes, as on a command line."""
        return with_nodes(self.base, depth) if self.depths else self.base


class Setting(NamedTuple):
    """One setting of a family: its text, the family's base, and its number of nodes; 0 where that is no setting."""

    text: str
    base: str
    depth: int


class Refused(NamedTuple):
    """A drafter that takes no part, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Families that fit, and drafters that do not."""

    families: tuple[Family, ...]
    refused: tuple[Refused, ...]

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Feature layers that any of them reads."""
        return tuple(sorted({layer for family in self.families for layer in family.deepest.spec.feature_layers}))

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence where no drafter with weights takes part."""
        if any(family.deepest.spec.num_bytes for family in self.families):
            return ()
        return ("no drafter with weights takes part, so lookups alone were tried; name one with --drafters",)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Settings to try of one method; see `recipes/tune/settings.toml`."""

    depths: tuple[int, ...] = ()
    variants: tuple[str, ...] = ("",)
    single: tuple[str, ...] = ()


def find_candidates(
    target: Target,
    drafters: Sequence[str] = (),
    listen: Callable[[str], None] = lambda name: None,
    known: Sequence[Drafter] | None = None,
) -> Candidates:
    """Load every method that fits the target.

    Args:
        drafters: checkpoints to try, or methods with settings.
        listen: told the name of each method before it is loaded.
        known: drafters to try beside those; by default all that are known for the target.

    Raises:
        CheckpointError: if no method can use one of `drafters`.
    """
    tried = {
        name: read_record(Tried, table, f"tune/settings.toml, {name}") for name, table in read_toml(_recipe()).items()
    }
    known = drafters_of(target) if known is None else known
    families: list[Family] = []
    refused = [Refused(one.name, one.why) for one in known if not one.is_ready]
    ordered = sorted(known, key=lambda one: one.kind == "target")  # untrained layers are slow, and seldom right
    ready = [one.text for one in ordered if one.is_ready and one.text is not None]
    for base in (*ready, *_installed(), *_given(target, drafters)):
        listen(base)
        try:
            families += _families(base, tried, target)
        except (ConfigError, CheckpointError) as error:
            refused.append(Refused(base, on_one_line(str(error), 300)))
    unique = {family.base: family for family in families}
    return Candidates(families=tuple(unique.values()), refused=tuple(refused))


def loaded(text: str, target: Target) -> Proposer:
    """Load a method with settings."""
    [choice] = method_specs([text])
    return load_method(choice, target)


def with_nodes(base: str, count: int) -> str:
    """
    >>> with_nodes("a_method", 3), with_nodes("a_method:max_n=4", 3)
    ('a_method:num_nodes=3', 'a_method:max_n=4,num_nodes=3')
    """
    return extended(base, f"{NODES}={count}")


def extended(base: str, settings: str) -> str:
    """Return a method with further settings."""
    return f"{base}{',' if ':' in base else ':'}{settings}" if settings else base


def _installed() -> list[str]:
    """Return the methods of other packages."""
    return [name for name in proposer_names() if name not in REGISTRY]


def _families(base: str, tried: Mapping[str, Tried], target: Target) -> Iterator[Family]:
    """Yield the families of one method or checkpoint.

    Raises:
        ConfigError, CheckpointError: if it does not load.
    """
    name, given = split_settings(base)
    own = tried.get(name, tried[OTHERS])
    takes = {field.name for field in fields(proposer_class(name).Config)}
    if NODES not in takes or NODES in given:
        yield Family(base=base, depths=(), deepest=loaded(base, target))
        return
    for variant in own.variants:
        text = extended(base, variant)
        yield Family(base=text, depths=own.depths, deepest=loaded(with_nodes(text, own.depths[-1]), target))
    for settings in own.single:
        text = extended(base, settings)
        yield Family(base=text, depths=(), deepest=loaded(text, target))


def _given(target: Target, drafters: Sequence[str]) -> Iterator[str]:
    """Yield the drafters of a user as methods with their checkpoint.

    Raises:
        CheckpointError: if no method can use one of them.
    """
    for text in drafters:
        if known_method(text.partition(":")[0].strip()) is not None and not Path(text).is_dir():
            loaded(text, target)
            yield text
        else:
            yield _method_of(text, target)


def _method_of(checkpoint: str, target: Target) -> str:
    """Return the first method that loads a checkpoint for this target.

    Raises:
        CheckpointError: if it was made for another target, or no method can read it.
    """
    directory = locate(checkpoint)
    check_target(read_json(directory / CONFIG), target, directory)
    reasons: list[str] = []
    for name in proposer_names():
        if proposer_class(name).shipped is None:
            continue
        try:
            loaded(f"{name}:{CHECKPOINT}={checkpoint}", target)
        except OutriderError as error:
            reasons.append(f"{name}: {on_one_line(str(error), 160)}")
        else:
            return f"{name}:{CHECKPOINT}={checkpoint}"
    raise CheckpointError(
        f"no method can draft for {target.spec.name} with {checkpoint} ({'; '.join(reasons)}); "
        "name the method, as METHOD:checkpoint=DIR, or leave it out"
    )


def _recipe() -> Path:
    return data_directory("recipes") / "tune" / "settings.toml"
