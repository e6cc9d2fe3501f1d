"""From everything that was found to the report, the recipe, and what is kept for `--method auto`.

Example: `concluded(findings).sentence` begins with "Use" or "Leave it off".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from outrider.bench.cells import Cell
from outrider.costs.identity import identity_of
from outrider.costs.tuned import Tuned, keep_tuned
from outrider.data.contamination import recorded_contamination
from outrider.data.workloads import Conversation
from outrider.formats.locate import locate
from outrider.formats.store import fingerprint
from outrider.proposers.method_spec import method_specs, with_heads
from outrider.results.derive import derive_rows
from outrider.results.rows import PLAIN, Row
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.tuning.candidates import Candidates
from outrider.tuning.config import TuneConfig
from outrider.tuning.outcome.decide import (
    Decision,
    checks_of,
    decide,
    limit_of,
    overall,
    predicted_decision,
    tune_rows,
)
from outrider.tuning.outcome.deploy import deployed
from outrider.tuning.outcome.recipe import write_recipe
from outrider.tuning.outcome.report import Forecast, RefusedDrafter, TuneReport
from outrider.tuning.outcome.sentence import sentence_of
from outrider.tuning.prices.forecast import Forecasts
from outrider.tuning.prices.predict import Pick, Predicted

__all__ = ["Findings", "concluded"]

MOST_FORECASTS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a run found. `units` is empty where nothing was timed."""

    config: TuneConfig
    target: Target
    conversations: Sequence[Conversation]
    candidates: Candidates
    forecasts: Forecasts
    predicted: Sequence[Predicted]
    units: Sequence[UnitResult]
    cells: Sequence[Cell]
    num_degenerate: int
    notes: tuple[str, ...]
    directory: Path
    seconds: Mapping[str, float]

    @property
    def concurrency(self) -> tuple[int, ...]:
        """Numbers of requests that the prompts fill."""
        return tuple(sorted({cell.batch for cell in self.cells}))


def concluded(found: Findings) -> TuneReport:
    """Return the report; the recipe and the result for `--method auto` are written."""
    config, concurrency = found.config, found.concurrency
    verdict = decide(found.units, found.predicted, concurrency) if found.units else None
    decision = verdict or predicted_decision(found.predicted, concurrency)
    row = _row_of(found, decision)
    waterfall = None if row is None else row.waterfall
    depth = found.forecasts.depths.get(decision.best.text, 1)
    verified = [one.choice for one in found.predicted if any(unit.method == one.choice.label for unit in found.units)]
    checks, median_error = checks_of(found.units, verified, found.forecasts) if found.units else ((), None)
    report = TuneReport(
        run=str(found.directory),
        target=found.target.spec.name,
        machine=config.hardware or _machine(found.target),
        temperature=config.temperature,
        concurrency=concurrency,
        is_prediction=verdict is None,
        method=decision.choice.text,
        budget=decision.choice.budget,
        sentence=sentence_of(decision, is_prediction=verdict is None, hardware=config.hardware),
        speedups=decision.speedups,
        off_from=decision.off_from,
        crossover=decision.crossover,
        limit=None if waterfall is None else limit_of(waterfall, depth),
        waterfall=waterfall,
        rows=tune_rows(found.units, verified) if found.units else (),
        checks=checks,
        median_error=median_error,
        forecasts=_forecasts(found),
        refused=tuple(RefusedDrafter(name=one.name, reason=one.reason) for one in found.candidates.refused),
        num_prompts=len(found.conversations),
        num_degenerate=found.num_degenerate,
        notes=(
            *found.notes,
            *found.candidates.notes,
            *_unverified(found, verdict),
            *_unfilled(found),
            *_contamination(found, decision),
        ),
        deploy=deployed(config, decision.choice),
        seconds=found.seconds,
    )
    recipe = write_recipe(report, config, found.directory, [one.text for one in dict.fromkeys(verified)])
    return replace(report, recipe=str(recipe), kept=None if config.hardware else str(_keep(found, report)))


def _row_of(found: Findings, decision: Decision) -> Row | None:
    """Return the measured row of the best choice at the smallest number of requests."""
    rows = (
        [row for row in overall(derive_rows(found.units)) if row.method == decision.best.label] if found.units else []
    )
    return min(rows, key=lambda row: row.batch, default=None)


def _forecasts(found: Findings) -> tuple[Forecast, ...]:
    return tuple(
        Forecast(
            method=one.choice.text,
            budget=one.choice.budget,
            speedups=tuple(one.speedups[batch] for batch in found.concurrency),
            score=one.score,
        )
        for one in found.predicted[:MOST_FORECASTS]
    )


def _unverified(found: Findings, verdict: Decision | None) -> list[str]:
    if verdict is not None or found.config.hardware:
        return []
    return ["the time ended before a choice was measured at every number of requests; give more --time to verify it"]


def _unfilled(found: Findings) -> list[str]:
    missing = [count for count in found.config.concurrency if count not in found.concurrency]
    return [f"not measured: {count} requests at once, for {len(found.conversations)} prompts" for count in missing]


def _contamination(found: Findings, decision: Decision) -> list[str]:
    """Return whether the prompts stand in the training texts of the best choice's drafter."""
    overlap = None if decision.best.text == PLAIN else _recorded(decision.best, found.target)
    if overlap is None:
        return []
    if found.config.prompts:
        return [f"whether your prompts stand in the training texts of {decision.best.text} is not known"]
    seen = {str(id) for id in overlap.get("prompts", ())} & {one.id for one in found.conversations}
    if not seen:
        return [f"none of the prompts stands in the training texts of {decision.best.text}"]
    return [
        f"{len(seen)} of {len(found.conversations)} prompts stand in the training texts of {decision.best.text}, so "
        "its speedups are too good"
    ]


def _recorded(choice: Pick, target: Target) -> Mapping[str, Any] | None:
    [spec] = with_heads(method_specs([choice.text]), target)
    checkpoint = spec.settings.get("checkpoint")
    return None if not checkpoint else recorded_contamination(locate(str(checkpoint)))


def _machine(target: Target) -> str:
    identity = identity_of(target)
    return identity.cpu if identity.device == "cpu" else identity.device


def _keep(found: Findings, report: TuneReport) -> Path:
    return keep_tuned(
        found.target,
        Tuned(
            target=report.target,
            fingerprint=fingerprint(found.target),
            machine=report.machine,
            method=report.method,
            budget=report.budget,
            temperature=report.temperature,
            speedups=report.speedups,
            off_from=report.off_from,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            run=report.run,
        ),
    )
