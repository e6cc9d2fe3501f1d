"""Loads the methods of a run, and says which of a preset's own cannot run on this machine.

A preset names heads that a checkout holds and an installed package does not, and heads that are trained first. A method
that was asked for by name must run or fail. A preset's method that has no weights here, or does not fit the target, is
left out, and a note says why and how to get the weights; with the weights here, the same command measures it.

    left out: eagle3, mtp: no smollm2-135m/eagle3, smollm2-135m/mtp on this machine; `outrider fetch heads ...`
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from outrider.bench.config import BenchConfig
from outrider.bench.notes import Notes
from outrider.data.contamination import recorded_contamination
from outrider.errors import CheckpointError, ConfigError
from outrider.formats.locate import EMBEDDED, FETCH, locate
from outrider.proposer import Proposer
from outrider.proposers.method_spec import MethodSpec, load_method, method_specs, with_heads
from outrider.results.rows import PLAIN
from outrider.target import Target

__all__ = ["LoadedMethod", "at_hand", "contamination_note", "contamination_of", "load_methods"]

log = logging.getLogger(__name__)


class LoadedMethod(NamedTuple):
    """A method that takes part; the proposer is None where this process drafts nothing."""

    spec: MethodSpec
    proposer: Proposer | None


def load_methods(config: BenchConfig, target: Target, notes: Notes) -> list[LoadedMethod]:
    """Return the methods that fit the target, with notes on those that were left out.

    Raises:
        ConfigError, CheckpointError: for a method that was asked for, or if plain decoding alone is left.
    """
    specs, found = method_specs(config.methods), list[LoadedMethod]()
    excused = (ConfigError, CheckpointError) if set(config.methods) <= {PLAIN, *config.optional} else ()
    if excused:
        specs, missing = at_hand(specs, target)
        notes.texts += missing
    else:
        specs = with_heads(specs, target)
    for spec in specs:
        with notes.leaving_out(spec.label, *excused):
            found.append(LoadedMethod(spec, load_method(spec, target) if "outrider" in config.engines else None))
    if notes.errors and [one.spec.name for one in found] == [PLAIN] and not config.external:
        raise notes.errors[0]
    return found


def at_hand(specs: Sequence[MethodSpec], target: Target) -> tuple[list[MethodSpec], tuple[str, ...]]:
    """Return the methods whose weights are here, with their checkpoints settled, and a note on each kind left out."""
    found: list[MethodSpec] = []
    missing: dict[str, list[tuple[str, str]]] = {FETCH: [], "train them first (docs/guides/train.md)": []}
    for spec in specs:
        checkpoint = str(spec.settings.get("checkpoint", ""))
        try:
            [settled] = with_heads([spec], target)
            if checkpoint:
                locate(checkpoint)
        except (CheckpointError, ConfigError):
            shipped = not checkpoint or checkpoint.partition("/")[0] in EMBEDDED
            missing[[*missing][0 if shipped else 1]].append((spec.name, checkpoint or "head of its kind"))
        else:
            found.append(settled)
    notes = tuple(_note(left_out, remedy) for remedy, left_out in missing.items() if left_out)
    for note in notes:
        log.warning("%s", note)
    return found, notes


def contamination_of(specs: Sequence[MethodSpec]) -> dict[str, Mapping[str, Any]]:
    """Return what training recorded about our prompts, by label, for every method that has a checkpoint here."""
    places = {one.label: locate(one.settings["checkpoint"]) for one in specs if one.settings.get("checkpoint")}
    found = {label: recorded_contamination(place) for label, place in places.items()}
    return {label: overlap for label, overlap in found.items() if overlap is not None}


def contamination_note(label: str, overlap: Mapping[str, Any]) -> str:
    """Return the sentence about one method's record."""
    count, of = len(overlap["prompts"]), overlap["num_prompts"]
    if not count:
        return f"{label}: none of the benchmark's {of} prompts stands in its training texts"
    return f"{label}: {count} of the benchmark's {of} prompts stand in its training texts, so its figures are too good"


def _note(left_out: Sequence[tuple[str, str]], remedy: str) -> str:
    labels, names = (", ".join(dict.fromkeys(column)) for column in zip(*left_out, strict=True))
    return f"left out: {labels}: no {names} on this machine; {remedy}"
