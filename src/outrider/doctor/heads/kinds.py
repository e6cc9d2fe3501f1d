"""The kinds of drafters that can be diagnosed, by name of the method: one module of this folder for each.

A module has a constant `RECURRENT` and four functions: `reads` (does a checkpoint look like one?), `feature_layers`
(of the target, which a variant may read), `stored_findings` (on the files alone) and
`variants`. A checkpoint is recognised by its config and tensors even if it does not load.

Example: `kind_of("some_method")` is the module `outrider.doctor.heads.some_method`.
"""

from collections.abc import Collection, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from outrider.doctor.finding import Finding
from outrider.doctor.variant import Variant
from outrider.errors import CheckpointError
from outrider.formats.locate import CONFIG
from outrider.formats.weights import read_weights
from outrider.models.spec import DecoderSpec
from outrider.proposers import REGISTRY
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["Kind", "kind_of", "method_of"]


class Kind(Protocol):
    """The module of one kind. `RECURRENT` is true for heads that read their own last state while they draft."""

    RECURRENT: bool

    def reads(self, config: Mapping[str, Any], names: Collection[str]) -> bool: ...

    def feature_layers(self, num_layers: int) -> tuple[int, ...]: ...

    def stored_findings(self, directory: Path, target: Target) -> list[Finding]: ...

    def variants(self, directory: Path, target: Target, spec: DecoderSpec | None) -> list[Variant]: ...


def kind_of(method: str) -> Kind | None:
    """Return the module for a method; None for one without a checkpoint of a known kind."""
    name = f"{__package__}.{method}"
    return cast(Kind, import_module(name)) if method.isidentifier() and find_spec(name) is not None else None


def method_of(directory: Path) -> str:
    """Return the method that a checkpoint looks like.

    Raises:
        CheckpointError: if it looks like none, or cannot be read.
    """
    config, names = read_json(directory / CONFIG).plain(), set(read_weights(directory))
    found = [name for name in REGISTRY if (kind := kind_of(name)) is not None and kind.reads(config, names)]
    if len(found) != 1:
        told = f"looks like {' and '.join(found)}" if found else "looks like no drafter that is known"
        raise CheckpointError(f"{directory} {told}; name the method, as METHOD:checkpoint={directory}")
    return found[0]
