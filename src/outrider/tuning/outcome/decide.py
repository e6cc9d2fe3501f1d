"""The decision: the method to use, the load from which on it should be off, and the limit of its speedup.

Of the choices that were measured to the end, the one with the best score is taken, the geometric mean of its speedups
over the numbers of requests. It is left off where that gains less than `LEAST_GAIN`: noise on a shared machine is as
large. Where drafting is off from some load on follows from the fixed budget: what it measured there, else what was
predicted.

    limit   the largest factor between perfect acceptance and the measured speedup: acceptance (depth + 1) / tau,
            verifying ideal / with_verify, drafting with_verify / with_draft

Worked example: depth 3 has tau 2: acceptance costs a factor 2; verifying costs 1.2, drafting 1.1. Acceptance limits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from statistics import median
from typing import Final

from outrider.costs.tuned import TunedSpeedup
from outrider.results.crossover import crossing
from outrider.results.derive import ALL, derive_rows
from outrider.results.rows import PLAIN, Row, Waterfall
from outrider.results.unit import UnitResult
from outrider.tuning.outcome.report import CheckedChoice, TuneRow
from outrider.tuning.prices.forecast import Forecasts
from outrider.tuning.prices.predict import Pick, Predicted, score_of

__all__ = ["Decision", "checks_of", "decide", "limit_of", "overall", "predicted_decision", "tune_rows"]

LEAST_GAIN: Final = 1.02
OFF: Final = Pick(PLAIN, "fixed")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A decision; `choice` is `OFF` where nothing pays, and `best` the one that came closest."""

    choice: Pick
    best: Pick
    speedups: tuple[TunedSpeedup, ...]
    off_from: int | None
    crossover: float | None


def decide(units: Sequence[UnitResult], predicted: Sequence[Predicted], concurrency: Sequence[int]) -> Decision | None:
    """Decide by what was measured, among the choices that were measured most.

    Returns:
        None if none was measured at every number of requests.

    Args:
        units: units of all rounds.
    """
    rows = overall(derive_rows(units))
    counts = Counter(unit.method for unit in units if unit.method != PLAIN)
    points = {one.choice: _points(rows, one.choice.label) for one in predicted}
    whole = [choice for choice, measured in points.items() if set(measured) >= set(concurrency)]
    if not whole:
        return None
    most = max(counts[choice.label] for choice in whole)
    measured = {choice: points[choice] for choice in whole if 2 * counts[choice.label] > most}
    return _decision(measured, predicted, concurrency, rows)


def predicted_decision(predicted: Sequence[Predicted], concurrency: Sequence[int]) -> Decision:
    """Decide by predictions alone."""
    return _decision({one.choice: dict(one.speedups) for one in predicted}, predicted, concurrency, ())


def overall(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that sum up all categories, or the only category, by method and batch."""
    totals = {(row.method, row.batch) for row in rows if row.category == ALL}
    return [row for row in rows if row.category == ALL or (row.method, row.batch) not in totals]


def checks_of(
    units: Sequence[UnitResult], choices: Sequence[Pick], forecasts: Forecasts
) -> tuple[tuple[CheckedChoice, ...], float | None]:
    """Return predictions beside measurements of the same groups, and the median absolute error."""
    rows, checks = overall(derive_rows(units)), list[CheckedChoice]()
    for choice in choices:
        for batch, measured in _points(rows, choice.label).items():
            own = [unit for unit in units if (unit.method, unit.batch) == (choice.label, batch)]
            groups = list(dict.fromkeys((unit.batch, unit.conversations) for unit in own))
            predicted = forecasts.speedup_on(choice, groups)
            checks.append(
                CheckedChoice(
                    method=choice.text,
                    budget=choice.budget,
                    concurrency=batch,
                    predicted=predicted,
                    measured=measured,
                    error=predicted / measured - 1,
                )
            )
    errors = [abs(check.error) for check in checks]
    return tuple(checks), median(errors) if errors else None


def tune_rows(units: Sequence[UnitResult], choices: Sequence[Pick]) -> tuple[TuneRow, ...]:
    """Return the measured cells of these choices, and of plain decoding."""
    rows = derive_rows(units)
    totals = {id(row) for row in overall(rows)}
    by_label = {choice.label: choice for choice in (OFF, *choices)}
    found = []
    for row in rows:
        if row.method in by_label:
            choice = by_label[row.method]
            found.append(
                TuneRow(
                    method=choice.text,
                    budget=choice.budget,
                    category=ALL if id(row) in totals else row.category,
                    concurrency=row.batch,
                    num_prompts=row.num_prompts,
                    tau=row.tau,
                    tokens_per_s=row.tokens_per_s,
                    speedup=row.speedup,
                    lossless=row.lossless.verdict,
                )
            )
    return tuple(found)


def limit_of(waterfall: Waterfall, depth: int) -> str:
    """Return what limits a speedup, in words.

    Args:
        depth: levels of a full draft.
    """
    losses = {
        f"acceptance: tau is {waterfall.ideal:.2f} of at most {depth + 1}": (depth + 1) / waterfall.ideal,
        "the cost of verifying more rows": waterfall.ideal / waterfall.with_verify,
        "the cost of drafting": waterfall.with_verify / waterfall.with_draft,
    }
    name, factor = max(losses.items(), key=lambda item: item[1])
    return f"{name} (a factor of {factor:.2f})"


def _points(rows: Sequence[Row], label: str) -> dict[int, float]:
    return {row.batch: row.speedup.point for row in rows if row.method == label and row.speedup is not None}


def _decision(
    measured: Mapping[Pick, Mapping[int, float]],
    predicted: Sequence[Predicted],
    concurrency: Sequence[int],
    rows: Sequence[Row],
) -> Decision:
    known = {choice: speedups for choice, speedups in measured.items() if speedups}
    if not known:
        return Decision(choice=OFF, best=OFF, speedups=(), off_from=concurrency[0], crossover=None)
    best = max(known, key=lambda choice: score_of(known[choice]))
    fixed = {
        **next((dict(one.speedups) for one in predicted if one.choice == Pick(best.text, "fixed")), {}),
        **_points(rows, best.text),
    }
    losing = [batch for batch in sorted(fixed) if all(fixed[more] <= 1.0 for more in fixed if more >= batch)]
    crossover = crossing(sorted(fixed), [fixed[batch] for batch in sorted(fixed)]) if fixed else None
    intervals = {row.batch: row.speedup for row in rows if row.method == best.label and row.speedup is not None}
    return Decision(
        choice=best if score_of(known[best]) >= LEAST_GAIN else OFF,
        best=best,
        speedups=tuple(
            TunedSpeedup(
                concurrency=batch,
                point=point,
                low=intervals[batch].low if batch in intervals else None,
                high=intervals[batch].high if batch in intervals else None,
            )
            for batch, point in sorted(known[best].items())
        ),
        off_from=losing[0] if losing else None,
        crossover=None if crossover is None or isinf(crossover) else crossover,
    )
