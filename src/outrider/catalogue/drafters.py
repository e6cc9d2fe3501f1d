"""Every drafter that is known for a target, and whether it can be used on this machine.

    lookups     methods without weights: always there
    target      the target's own layers, and its prediction modules if it has them
    shipped     heads that come with Outrider, for the target that they were trained for
    catalogue   published drafters (`outrider.catalogue.published`); usable if they are in the hub's local cache
    combined    a lookup with the first head that is ready

Nothing is fetched and no network is used unless asked for. A drafter is a candidate if it `is_ready`; its `text` is
what every command and `outrider.proposers.method_spec` take.

Example: `[one.text for one in drafters_of("smollm2-135m") if one.is_ready]` begins with the lookups.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from outrider.catalogue.fit import Fit, fit_of, has_weights
from outrider.catalogue.hub import fetch_configs
from outrider.catalogue.published import UNKNOWN, Published, base_name, layouts, published
from outrider.catalogue.target_files import TargetFacts, cached_snapshot, facts_of
from outrider.errors import CheckpointError
from outrider.formats.locate import CONFIG, EMBEDDED, head_roots
from outrider.formats.shipped import shipped_head, short_name
from outrider.formats.store import fingerprint_of
from outrider.formats.weights import EMBEDDING, read_weights
from outrider.proposers import DEFAULT_HEAD, REGISTRY, proposer_class
from outrider.records.json_fields import read_json
from outrider.results.rows import PLAIN
from outrider.target import Target

__all__ = ["Drafter", "drafters_of"]

OWN_LICENCE = "Apache-2.0"
"""The licence of Outrider, its methods and its heads."""
MODULE_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""Config keys under which targets count their own prediction modules."""
MOST_LAYERS = 4096
"""Layers above which a config is taken for damaged; loading it says so."""
MIMO, OTHER_MODULES = "mimo", "nextn"
MIMO_TYPES = ("mimo", "qwen2")


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """A way of drafting for a target.

    name       hub id, name of a shipped head, or method
    text       the method with its settings, as a command takes it; None if no method reads this layout
    kind       origin: "shipped" with Outrider, of the "catalogue", ...
    is_local   its files are on this machine
    fits       its sizes are the target's; None if that cannot be told without its files
    why        the reason, in words
    source     place of its figures or of its publication
    """

    name: str
    text: str | None
    kind: Literal["lookup", "target", "shipped", "catalogue", "combined"]
    layout: str
    is_local: bool = True
    fits: bool | None = True
    why: str
    licence: str = UNKNOWN
    source: str = ""

    @property
    def method(self) -> str | None:
        """The registered name of its method."""
        return None if self.text is None else self.text.partition(":")[0]

    @property
    def is_ready(self) -> bool:
        """True if it can be loaded now."""
        return self.text is not None and self.is_local and self.fits is True


def drafters_of(target: str | Path | Target, *, online: bool = False) -> list[Drafter]:
    """Return every drafter that is known for a target: a loaded one, or a name or path as `load_target` takes it.

    Args:
        online: fetch the configs of published drafters and of a target that is a hub id, a few kB each, to compare
            sizes before any weights are fetched.

    Raises:
        ConfigError: for a name of no known kind.
        CheckpointError: if the target's config cannot be read.
        RunError: if the hub cannot be reached.
    """
    faults: Mapping[str, str] = {}
    facts = facts_of(target)
    if online:
        drafters = [one.drafter for one in _listed(facts) if layouts()[one.layout].method is not None]
        faults = fetch_configs(drafters if facts.has_files else [facts.name, *drafters])
        facts = facts_of(target)
    found = [*_lookups(), *_own(facts), *_shipped(facts), *_published(facts, faults)]
    return [*found, *_combined(found)]


def _lookups() -> Iterator[Drafter]:
    for name in REGISTRY:
        cls = proposer_class(name)
        if name == PLAIN or cls.scripted or _fields(cls.Config).get("checkpoint") is not None:
            continue
        yield Drafter(
            name=name,
            text=name,
            kind="lookup",
            layout="none",
            why="needs no weights",
            licence=OWN_LICENCE,
            source="docs/results",
        )


def _own(facts: TargetFacts) -> Iterator[Drafter]:
    """Yield drafters made of the target's own weights."""
    yield from _own_modules(facts)
    num_layers = facts.size("num_hidden_layers")
    if num_layers is None or not facts.has_files or not 4 <= num_layers <= MOST_LAYERS:
        return
    chosen = ",".join(map(str, [*range(max(1, num_layers // 10)), num_layers - 2, num_layers - 1]))
    for name in REGISTRY:
        for key, field in _fields(proposer_class(name).Config).items():
            if field.metadata.get("instead") == "checkpoint":
                yield Drafter(
                    name=f"{len(chosen.split(','))} of its {num_layers} layers",
                    text=f"{name}:{key}={chosen}",
                    kind="target",
                    layout="target",
                    why="its own layers; untrained, so seldom right",
                    licence="the target's",
                    source="none",
                )


def _own_modules(facts: TargetFacts) -> Iterator[Drafter]:
    text = facts.config.get("text_config")
    config = text if isinstance(text, Mapping) else facts.config
    count = next((config[key] for key in MODULE_KEYS if type(config.get(key)) is int and config[key] > 0), None)
    if count is None:
        return
    is_read = config.get("model_type") in MIMO_TYPES and facts.directory is not None
    layout = layouts()[MIMO if is_read else OTHER_MODULES]
    yield Drafter(
        name=f"{count} prediction module{'s' if count > 1 else ''} of its own",
        text=f"{layout.method}:checkpoint={facts.directory}" if is_read else None,
        kind="target",
        layout=MIMO if is_read else OTHER_MODULES,
        is_local=facts.directory is not None,
        fits=is_read,
        why="its own modules" if is_read else layout.reason,
        licence="the target's",
        source="the target's model card",
    )


def _shipped(facts: TargetFacts) -> Iterator[Drafter]:
    for name in REGISTRY:
        kind = proposer_class(name).shipped
        head = None if kind is None else _head(kind, facts)
        if head is not None:
            yield Drafter(
                name=short_name(head),
                text=name,
                kind="shipped",
                layout="outrider",
                why="trained for this target",
                licence=OWN_LICENCE,
                source="docs/results",
            )


def _head(kind: str, facts: TargetFacts) -> Path | None:
    """Return the shipped head of a target: by fingerprint where its weights are at hand, else by its name."""
    if facts.loaded is not None:
        return shipped_head(kind, facts.loaded)
    if facts.directory is not None:
        return _head_of_directory(kind, facts, facts.directory)
    names = {name for name, one in EMBEDDED.items() if facts.name in (name, one.hub_id)}
    heads = [root / name / kind for root in head_roots() for name in sorted(names)]
    return next((head for head in heads if (head / CONFIG).is_file()), None)


def _head_of_directory(kind: str, facts: TargetFacts, directory: Path) -> Path | None:
    """Return the head whose config holds the fingerprint of the target's stored embedding."""
    for root in head_roots():
        for file in sorted(root.glob(f"*/{kind}/{CONFIG}")):
            config = read_json(file)
            # the embedding is only read for a head that may fit
            if config.get("vocab_size") not in (None, facts.size("vocab_size")):
                continue
            own = config.get("outrider")
            known = own.get("target_fingerprint") if isinstance(own, Mapping) else None
            try:
                if known == fingerprint_of(read_weights(directory)[EMBEDDING]):
                    return file.parent
            except CheckpointError:  # weights of another layout: loading the target says what is wrong
                return None
    return None


def _listed(facts: TargetFacts) -> list[Published]:
    """Return what the catalogue lists for a target."""
    return [one for one in published() if not facts.names.isdisjoint(map(base_name, one.targets))]


def _published(facts: TargetFacts, faults: Mapping[str, str]) -> Iterator[Drafter]:
    for one in _listed(facts):
        layout, directory = layouts()[one.layout], cached_snapshot(one.drafter)
        is_local = directory is not None and has_weights(directory)
        if layout.method is None:
            fit = Fit(False, layout.reason)
        elif one.drafter in faults:
            fit = Fit(False, faults[one.drafter])
        else:
            fit = Fit(None, "not on this machine") if directory is None else fit_of(layout, directory, facts)
            if fit.fits is not False and not is_local:
                fit = fit._replace(why=f"{fit.why}; `hf download {one.drafter}` fetches it")
        yield Drafter(
            name=one.drafter,
            text=None if layout.method is None else f"{layout.method}:checkpoint={one.drafter}",
            kind="catalogue",
            layout=one.layout,
            is_local=is_local,
            fits=fit.fits,
            why=fit.why,
            licence=one.licence,
            source=one.source,
        )


def _combined(found: list[Drafter]) -> Iterator[Drafter]:
    """Yield the methods that join a lookup with a head, for the first head of the default kind."""
    head = next((one for one in found if one.is_ready and one.method == DEFAULT_HEAD), None)
    if head is None:
        return
    _, colon, settings = (head.text or "").partition(":")
    for name in REGISTRY:
        if "drafter" in _fields(proposer_class(name).Config):
            yield dataclasses.replace(
                head, name=f"lookup and {head.name}", text=name + colon + settings, kind="combined"
            )


def _fields(config: type[Any]) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(config)}
