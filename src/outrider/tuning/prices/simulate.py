"""The settings to run with the adaptive budget on the clock of the tables: the most promising, while there is time.

A setting whose promise is below the scores of `MOST` choices that are known already cannot be among those to verify.

Worked example: promises 1.4, 1.3 and 1.1, and six fixed settings between 1.15 and 1.25. Two settings are run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import NamedTuple

from outrider.bench.cells import Cell
from outrider.data.dialogue import Rules
from outrider.planning.check import CostTables
from outrider.proposer import Proposer
from outrider.results.unit import UnitResult
from outrider.tuning.candidates import Family, Setting
from outrider.tuning.prices.forecast import Forecasts
from outrider.tuning.prices.predict import Pick, gains_of, promise_of, score_of, speedups_of
from outrider.tuning.replays.adaptive import KnownChains, adaptive_units
from outrider.tuning.replays.kept import Replays
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.replay import Key
from outrider.tuning.replays.texts import Text
from outrider.tuning.schedule import MOST

__all__ = ["Simulating", "simulated"]


class Simulating(NamedTuple):
    """Everything that a run of the adaptive budget needs.

    load    function from a method with settings to its proposer
    end     monotonic time after which no further run begins
    """

    target: ReplayTarget
    texts: Mapping[Key, Text]
    cells: Sequence[Cell]
    tables: CostTables
    rules: Rules
    replays: Replays
    load: Callable[[str], Proposer]
    max_len: int
    end: float
    tell: Callable[[str], None]


def simulated(job: Simulating, families: Sequence[Family], forecasts: Forecasts) -> tuple[Forecasts, tuple[str, ...]]:
    """Return the forecasts with those of the adaptive budget, and a note on settings that there was no time for."""
    by_base = {family.base: family for family in families}
    promises = {setting: promise_of(setting, forecasts.speedups) for setting in forecasts.speedups}
    adaptive, gains = dict(forecasts.adaptive), dict(forecasts.gains)
    late: list[str] = []
    for setting in sorted(promises, key=lambda one: (-promises[one], one.depth)):
        scores = sorted(map(score_of, (*forecasts.speedups.values(), *adaptive.values())), reverse=True)
        if promises[setting] <= max([1.0, *scores[MOST - 1 : MOST]]):
            break
        if adaptive and monotonic() > job.end:
            late.append(f"{setting.text} auto")
            continue
        job.tell(f"running the adaptive budget along the answers: {setting.text}")
        units = _units(job, by_base[setting.base], setting)
        adaptive[setting] = speedups_of(units, forecasts.plain)
        gains[Pick(setting.text, "auto").label] = gains_of(units, forecasts.plain)
    notes = (f"not predicted for lack of time: {', '.join(late)}",) if late else ()
    return replace(forecasts, adaptive=adaptive, gains=gains), notes


def _units(job: Simulating, family: Family, setting: Setting) -> list[UnitResult]:
    costs = job.tables.of(setting.text)
    assert costs is not None, "its fixed budget was priced"
    if family.base in job.replays.reaches:
        depth = setting.depth or family.deepest.spec.max_nodes
        proposer: Proposer = KnownChains(
            job.texts, job.replays.reaches[family.base], depth, reads=costs.pending_s(1) > 0
        )
    else:
        proposer = family.deepest if setting == family.settings[-1] else job.load(setting.text)
    return adaptive_units(
        Pick(setting.text, "auto").label,
        job.target,
        proposer,
        job.cells,
        job.texts,
        job.tables,
        job.rules,
        method=setting.text,
        max_len=job.max_len,
    )
