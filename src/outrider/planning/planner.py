"""From what was asked to the plan: costs, acceptance, settings, and what a reader must know about them.

Costs are measured (`CostFile`) or a data sheet's (`RooflineCosts`); acceptance is given as numbers or taken from a run,
where numbers for one method win. Notes say where a figure lies outside of what was measured: acceptance deeper than
known, batches larger than measured.

Example: `planned(PlanRequest(hardware="h100", model="qwen2.5-7b", acceptance=("0.8",), methods=("a_method",)))`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from outrider.costs.identity import UNKNOWN
from outrider.costs.tables import STEADY, CostFile
from outrider.errors import ConfigError, nearest
from outrider.planning.acceptance_profile import AcceptanceProfile
from outrider.planning.check import CostTables, check_run
from outrider.planning.config import LARGEST_BATCH, PlanRequest
from outrider.planning.drafters import WARM, read_drafters, sized
from outrider.planning.models import model_spec
from outrider.planning.outlook import MethodOutlook, Outlook, PlanScope, best_methods, outlook_of
from outrider.planning.predict import Method
from outrider.planning.request import acceptances_of, parse_acceptance, parse_nodes
from outrider.planning.roofline import Hardware, RooflineCosts, RooflineDraftCosts
from outrider.planning.run import (
    Evidence,
    acceptance_of,
    chosen_rows,
    label_of,
    mean_context,
    read_run,
)
from outrider.planning.widths import Width, stored_kinds, width_of
from outrider.proposers.method_spec import spelled
from outrider.records.presets import preset_file, read_record, read_toml
from outrider.results.rows import PLAIN

__all__ = ["checked", "planned"]

DEFAULT_CONTEXT: Final = 512.0
BEYOND: Final = 4
"""Multiple of the largest measured batch at which the search for the crossover ends; tables go on linearly."""
MEASURED_MARGIN: Final = 0.05
ROOFLINE_MARGIN: Final = 0.15
"""Error of predictions in the checks of docs/guides/plan.md: from a profile, and from a data sheet."""
UNKNOWN_MARGIN: Final = 0.1


def planned(request: PlanRequest) -> Outlook:
    """Return the plan.

    Raises:
        ConfigError, CheckpointError, RunError: for anything asked that does not exist or does not fit.
    """
    request = replace(request, methods=tuple(map(spelled, request.methods)))
    evidence = None if request.run is None else read_run(request.run)
    context = _context(request, evidence)
    measured = _measured(request, evidence)
    sources = _sources(request, context)
    methods, doubts = _methods(request, measured, sources)
    scope = PlanScope(
        batches=tuple(sorted(set(request.batches))),
        nodes=parse_nodes(request.nodes),
        context=context,
        temperature=request.temperature,
        num_tokens=request.tokens,
        largest_batch=max(sources.largest_batch, *request.batches),
        margin=sources.margin,
    )
    outlooks = outlook_of(scope, methods, sources.tables)
    return Outlook(
        target=sources.target,
        costs=sources.name,
        context=context,
        temperature=request.temperature,
        num_tokens=request.tokens,
        largest_batch=scope.largest_batch,
        margin=sources.margin,
        notes=(*sources.notes, *doubts, *_notes(scope, outlooks, sources)),
        methods=outlooks,
        best=best_methods(outlooks, sources.margin),
    )


def checked(request: PlanRequest, path: Path) -> Outlook:
    """Compare a finished run with the costs.

    Raises:
        ConfigError, CheckpointError, RunError: as `planned`.
    """
    evidence = read_run(path)
    if request.weights is None:
        request = replace(request, weights=_kinds_of_run(evidence))
    if request.hardware is not None:
        request = replace(request, kv_dtype=evidence.report.kv_dtype)
    context = _context(request, evidence)
    sources = _sources(request, context, of_run=True)
    differs = evidence.report.target != sources.target
    note = f"the run's target is {evidence.report.target}, the costs are those of {sources.target}"
    return Outlook(
        target=sources.target,
        costs=sources.name,
        context=context,
        temperature=request.temperature,
        notes=(*sources.notes, *((note,) if differs else ())),
        check=check_run(evidence, sources.tables, context, evidence.report.run or str(path)),
    )


def _kinds_of_run(evidence: Evidence) -> str:
    """Return the kinds of a run's weights; older runs, and those of servers, had plain ones."""
    report = evidence.report
    return report.dtype if report.weights in (None, "server") else report.weights


class _Sources(NamedTuple):
    """A source of costs.

    largest_batch   largest batch that they hold for, or that fits the memory
    limit           note for a plan that goes beyond `known_batch`
    margin          a speedup this share away from 1, or less, is about even
    """

    name: str
    target: str
    tables: CostTables
    labels: tuple[str, ...]
    known_batch: int
    largest_batch: int
    limit: str
    margin: float
    notes: tuple[str, ...] = ()


def _sources(request: PlanRequest, context: float, *, of_run: bool = False) -> _Sources:
    return _from_file(request.costs) if request.costs is not None else _from_sheet(request, context, of_run)


def _from_file(path: Path) -> _Sources:
    file = CostFile.read(path)
    who = file.identity
    kinds = dict.fromkeys((who.weights, who.dtype) if who.weights != UNKNOWN else (who.dtype,))
    known, spread = int(max(file.target.forward.axes["slots"])), file.spread
    return _Sources(
        name=f"{path} ({who.cpu}, {who.device}, {who.num_threads} threads, {', '.join(kinds)})",
        target=who.target,
        tables=CostTables(target=file.target, drafts=file.drafts),
        labels=tuple(label for label in file.drafts if label != PLAIN),
        known_batch=known,
        largest_batch=BEYOND * known,
        limit=f"costs were measured up to batch {known}; beyond, they go on in a straight line",
        margin=max(MEASURED_MARGIN, UNKNOWN_MARGIN if spread is None else spread),
        notes=_doubts(path, spread),
    )


def _doubts(path: Path, spread: float | None) -> tuple[str, ...]:
    """Return notes on how far a profile can be trusted."""
    if spread is None:
        return (
            f"{path} does not say how far its sweeps were apart, so {100 * UNKNOWN_MARGIN:.0f} % either way is even",
        )
    if spread <= STEADY:
        return ()
    return (
        f"{path} was disturbed while it was measured: its sweeps were {100 * spread:.0f} % apart, so speedups within "
        "that share of 1 are called even; measure again with `outrider profile` when the machine is quiet",
    )


def _from_sheet(request: PlanRequest, context: float, of_run: bool) -> _Sources:
    """Return a data sheet's costs; with `of_run`, a draft model counts only where it was named: it may not be ours."""
    assert request.hardware is not None
    file = preset_file("hardware", request.hardware, "hardware")
    hardware = read_record(Hardware, read_toml(file), str(file))
    spec = model_spec(request.model)
    width = width_of(stored_kinds(request.model) if request.weights in (None, "stored") else request.weights, spec)
    target = RooflineCosts(
        hardware=hardware,
        spec=spec,
        bytes_per_weight=request.bytes_per_weight or width.num_bytes,
        is_integer=width.is_integer,
        kv_dtype=request.kv_dtype,
    )
    fits = target.largest_batch(context)
    if fits < 1:
        raise ConfigError(f"{request.model} does not fit into the memory of {hardware.name}; give a larger --hardware")
    known = read_drafters(request.drafters)
    own = {name: size for name, size in known.items() if not (of_run and size.is_foreign)}
    sizes = own | {text: sized(text, known) for text in request.methods}
    drafts = {label: RooflineDraftCosts(target=target, sizes=size, context=context) for label, size in sizes.items()}
    return _Sources(
        name=hardware.name,
        target=request.model,
        tables=CostTables(target=target, drafts=drafts),
        labels=tuple(known),
        known_batch=fits,
        largest_batch=min(fits, LARGEST_BATCH),
        limit=f"at a context of {context:.0f}, memory ends at batch {fits}",
        margin=ROOFLINE_MARGIN,
        notes=(f"a roofline, not a measurement. {hardware.source}", *_arithmetic(width, target)),
    )


def _arithmetic(width: Width, target: RooflineCosts) -> tuple[str, ...]:
    """Return a note on how quantised weights are read and multiplied."""
    if not width.is_integer:
        return ()
    rate = target.hardware.int8_ops_per_s
    how = f"multiplied as 8-bit integers at {rate / 1e12:.3g} TOP/s" if rate else "multiplied as plain ones"
    return (f"weights in {width.kinds}: {target.bytes_per_weight:.2f} bytes each, {how}",)


def _context(request: PlanRequest, evidence: Evidence | None) -> float:
    if request.context is not None:
        return request.context
    return mean_context(evidence.units if evidence is not None else (), DEFAULT_CONTEXT)


def _measured(request: PlanRequest, evidence: Evidence | None) -> dict[str, AcceptanceProfile]:
    if evidence is None:
        return {}
    rows = chosen_rows(evidence.report, request.category, request.temperature)
    return {label_of(row): acceptance_of(row) for row in rows}


def _methods(
    request: PlanRequest, measured: Mapping[str, AcceptanceProfile], sources: _Sources
) -> tuple[dict[str, Method], list[str]]:
    """Return the methods that were asked for, or all with both costs and acceptance; and notes on the rest."""
    if not measured and not request.acceptance:
        raise ConfigError("nothing is known of acceptance; give --acceptance 0.8,0.6 or --run RUN_DIR")
    asked = list(request.methods) or list(measured) or list(sources.labels)
    for label in asked:
        if measured and not request.acceptance and label not in measured:
            raise ConfigError(f"the run has no method '{label}'{nearest(label, measured)}")
    own = {given.method: given.acceptance for given in map(parse_acceptance, request.acceptance)}
    lookups = [label for label in asked if _is_lookup(label, request)]
    bare = [label for label in lookups if label not in own and label not in measured]
    notes = [
        f"{label}: a draft in every step is assumed; write {label}=0.8@0.3 where it finds one in 30 % of them"
        for label in lookups
        if label in own and own[label].coverage == 1
    ]
    if bare:
        why = "a lookup drafts only where the text repeats itself, which an acceptance without a name does not say"
        remedy = f"give {bare[0]}=0.8@0.3 (right in 80 %, a draft in 30 % of the steps) or --run RUN_DIR"
        if request.methods or len(bare) == len(asked):
            raise ConfigError(f"nothing is known of '{bare[0]}': {why}; {remedy}")
        notes.append(f"left out: {', '.join(bare)}: {why}; {remedy}")
        asked = [label for label in asked if label not in bare]
    acceptances = dict(measured)
    if request.acceptance:
        acceptances |= acceptances_of(request.acceptance, asked, measured)
    found = {label: sources.tables.of(label) for label in asked}
    missing = [label for label, drafts in found.items() if drafts is None]
    if missing and (request.methods or len(missing) == len(asked)):
        raise ConfigError(f"{sources.name} has no costs of '{missing[0]}'{nearest(missing[0], sources.labels)}")
    return {label: Method(acceptances[label], drafts) for label, drafts in found.items() if drafts is not None}, notes


def _is_lookup(label: str, request: PlanRequest) -> bool:
    """Return whether its sizes say that it computes nothing, in the file of drafters or in ours."""
    name = label.partition(":")[0].removesuffix(WARM)
    known = read_drafters("published") | read_drafters(request.drafters)
    return name in known and known[name].passes == "none"


def _notes(scope: PlanScope, outlooks: tuple[MethodOutlook, ...], sources: _Sources) -> list[str]:
    notes = []
    for outlook in outlooks:
        deepest = max(one.depth for batch in outlook.batches for one in batch.nodes)
        if deepest > outlook.known_depth:
            notes.append(
                f"{outlook.method}: acceptance is known to depth {outlook.known_depth}; deeper guesses repeat the last"
            )
    if max(scope.batches) > sources.known_batch:
        notes.append(sources.limit)
    return notes
