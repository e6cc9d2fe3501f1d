"""The drafters to time, in order: those first whose drafts, if they were free, would bring most.

Timing a drafter takes seconds. What it could gain at most is known before, from the replay and the target's table: its
*bound*, the best score with free drafts. A family whose bound is below a score that is already known cannot win, and is
not timed.

Worked example: bounds 1.7, 1.5 and 1.2. The first is timed and scores 1.4; the second is timed, the third is not.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from time import monotonic
from typing import Final, NamedTuple, final

from outrider.costs.tables import DraftCosts, TargetCosts
from outrider.planning.check import CostTables
from outrider.planning.predict import FreeDrafts
from outrider.results.rows import PLAIN
from outrider.tuning.candidates import Family
from outrider.tuning.prices.book import CostBook
from outrider.tuning.prices.forecast import Forecasts
from outrider.tuning.prices.predict import promise_of

__all__ = ["Priced", "priced"]

NEAR: Final = 8
Forecaster = Callable[[Sequence[Family], CostTables], Forecasts]


class Priced(NamedTuple):
    """Forecasts of the families that were timed, and their costs; why others were not."""

    forecasts: Forecasts
    tables: CostTables
    notes: tuple[str, ...]


def priced(
    families: Sequence[Family],
    book: CostBook,
    own: TargetCosts,
    forecast: Forecaster,
    *,
    end: float,
    tell: Callable[[str], None],
) -> Priced:
    """Time families, the most promising first, until monotonic time `end`; one at least."""
    plain, own = book.plain(), Remembered(own)
    bounds = {family.base: _score(forecast([family], _tables(own, plain, family, FreeDrafts()))) for family in families}
    merged = Forecasts(speedups={}, plain=forecast([], CostTables(target=own, drafts={PLAIN: plain})).plain, depths={})
    drafts: dict[str, DraftCosts] = {PLAIN: plain}
    beaten: list[str] = []
    late: list[str] = []
    best = 0.0
    for family in sorted(families, key=lambda family: -bounds[family.base]):
        costs = book.known(family)
        if costs is None and bounds[family.base] < best:
            beaten.append(f"{family.base} ({bounds[family.base]:.2f})")
            continue
        if costs is None and best and monotonic() > end:
            late.append(family.base)
            continue
        if costs is None:
            tell(f"timing the drafts of {family.base}")
            costs = book.measure(family)
        drafts |= dict.fromkeys((one.text for one in family.settings), costs)
        found = forecast([family], _tables(own, plain, family, costs))
        best = max(best, _score(found))
        merged = Forecasts(
            speedups={**merged.speedups, **found.speedups},
            plain=merged.plain,
            depths={**merged.depths, **found.depths},
            gains={**merged.gains, **found.gains},
        )
    notes = []
    if beaten:
        notes.append(f"not timed, since their scores with free drafts are below the best: {', '.join(beaten)}")
    if late:
        notes.append(f"not timed for lack of time: {', '.join(late)}")
    return Priced(merged, CostTables(target=own, drafts=drafts), tuple(notes))


@final
class Remembered(TargetCosts):
    """Costs that are looked up once for steps of one kind; contexts are rounded to `NEAR` tokens."""

    def __init__(self, costs: TargetCosts) -> None:
        self._forward_s = cache(costs.forward_s)
        self._accept_s = cache(costs.accept_s)
        self._rest_s = cache(costs.rest_s)

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        return float(self._forward_s(num_slots, num_rows, NEAR * round(context / NEAR)))

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        return float(self._accept_s(num_slots, num_rows, greedy))

    def rest_s(self, num_slots: int) -> float:
        return float(self._rest_s(num_slots))


def _tables(own: TargetCosts, plain: DraftCosts, family: Family, costs: DraftCosts) -> CostTables:
    drafts: Mapping[str, DraftCosts] = {one.text: costs for one in family.settings}
    return CostTables(target=own, drafts={**drafts, PLAIN: plain})


def _score(forecasts: Forecasts) -> float:
    """Return the largest promise of any setting."""
    return max(promise_of(setting, forecasts.speedups) for setting in forecasts.speedups)
