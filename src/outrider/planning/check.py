"""Do the predictions hold? Every row of a finished run, predicted from a cost table, beside what was measured.

Two predictions, neither of which reads a time of the run:

    from the row      tau, coverage and mean nodes of the row, one average step (`outrider.planning.predict`) for
                      every number of slots that were running: in a queue of a few requests the last stand empty
    from its steps    every step of the run priced by its own slots, rows and context, and the speedup then taken by
                      `derive_rows` exactly as from measured times: what is left is the cost table's own error

The difference between the two is the price of averaging: answers that end, drafts of uneven size.

Worked example: a row with tau 2, four nodes in every step, measured at 1.6; the table says 10 ms for one row, 12 ms for
five and 0.5 ms for a draft. Predicted 2 * 10 / 12.5 = 1.6: error 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from outrider.costs.tables import DraftCosts, TargetCosts
from outrider.errors import ConfigError
from outrider.metrics import StepRecord
from outrider.planning.acceptance_profile import EMPTY
from outrider.planning.drafters import measured
from outrider.planning.predict import FreeDrafts, Setting, step_time
from outrider.planning.run import Evidence, drafted_rows, label_of, mean_context, occupancy, shape_of
from outrider.results.derive import derive_rows
from outrider.results.rows import PLAIN, Row
from outrider.results.unit import UnitResult

__all__ = ["Check", "CheckedRow", "CostTables", "check_run", "retimed"]


@dataclass(frozen=True, kw_only=True)
class CostTables:
    """Costs of steps: the target's table, and one for each method."""

    target: TargetCosts
    drafts: Mapping[str, DraftCosts]

    @property
    def plain(self) -> DraftCosts:
        """Costs of plain decoding's own proposer."""
        return self.drafts.get(PLAIN, FreeDrafts())

    def of(self, method: str) -> DraftCosts | None:
        return self.plain if method == PLAIN else measured(method, self.drafts)


@dataclass(frozen=True, kw_only=True)
class CheckedRow:
    """Speedups of one row; errors are relative, positive where the prediction was too high."""

    method: str
    category: str
    batch: int
    temperature: float
    tau: float
    measured: float
    predicted: float
    error: float
    predicted_from_steps: float | None
    error_from_steps: float | None


@dataclass(frozen=True, kw_only=True)
class Check:
    """All rows; `median_error` and `median_error_from_steps` are medians of absolute relative errors."""

    run: str
    rows: tuple[CheckedRow, ...]
    median_error: float
    median_error_from_steps: float | None
    left_out: tuple[str, ...]


def check_run(evidence: Evidence, tables: CostTables, context: float, run: str) -> Check:
    """Compare a run with a cost table.

    Args:
        context: committed tokens per slot, where the run's units are not at hand.

    Raises:
        ConfigError: if no row can be compared.
    """
    rows = [row for row in drafted_rows(evidence.report) if row.speedup is not None and row.tau is not None]
    left_out = dict.fromkeys(row.method for row in rows if tables.of(row.method) is None)
    replayed = {_key(row): row for row in _replayed(evidence.units, tables)}
    checked = []
    for row in rows:
        drafts = tables.of(row.method)
        if drafts is not None:
            units = [unit for unit in evidence.units if (unit.method, unit.batch) == (row.method, row.batch)]
            setting = Setting(num_slots=row.batch, context=mean_context(units, context), greedy=row.temperature == 0)
            predicted = _predicted(row, tables, drafts, setting, occupancy(units, row.batch))
            checked.append(_checked(row, predicted, replayed.get(_key(row))))
    if not checked:
        missing = f"; the costs hold no table of {', '.join(left_out)}" if left_out else ""
        raise ConfigError(f"{run} has no row that can be checked{missing}")
    from_steps = [abs(row.error_from_steps) for row in checked if row.error_from_steps is not None]
    return Check(
        run=run,
        rows=tuple(checked),
        median_error=median(abs(row.error) for row in checked),
        median_error_from_steps=median(from_steps) if from_steps else None,
        left_out=tuple(left_out),
    )


def retimed(unit: UnitResult, tables: CostTables) -> UnitResult:
    """Return the unit as if every step had taken what the tables say."""
    drafts = tables.of(unit.method)
    assert drafts is not None, "a unit without a table is left out"
    steps = [_retimed_step(step, tables.target, drafts, unit.temperature == 0) for step in unit.steps]
    return replace(unit, steps=tuple(steps))


def _retimed_step(step: StepRecord, target: TargetCosts, drafts: DraftCosts, greedy: bool) -> StepRecord:
    slots = len(step.slots)
    nodes = sum(slot.num_nodes for slot in step.slots)
    accepted = sum(slot.num_accepted for slot in step.slots)
    depth = max(slot.draft_depth for slot in step.slots)
    return replace(
        step,
        propose_s=drafts.propose_s(slots, nodes, depth),
        verify_s=target.forward_s(slots, slots + nodes, step.context_per_row),
        accept_s=target.accept_s(slots, slots + accepted, greedy),
        commit_s=0.0,
        host_s=target.rest_s(slots),
    )


def _replayed(units: Sequence[UnitResult], tables: CostTables) -> list[Row]:
    ours = [unit for unit in units if unit.engine == "outrider" and unit.steps and tables.of(unit.method) is not None]
    return derive_rows(retimed(unit, tables) for unit in ours)


def _predicted(
    row: Row, tables: CostTables, drafts: DraftCosts, setting: Setting, shares: Mapping[int, float]
) -> float:
    """Return tau times a token's time in plain steps over that in the row's, with as many slots as were running."""
    assert row.tau is not None
    plain_s = step_s = 0.0
    for slots, share in shares.items():
        running = replace(setting, num_slots=slots)
        plain_s += share / slots * step_time(tables.target, tables.plain, EMPTY, running).total_s
        step_s += share / slots * step_time(tables.target, drafts, shape_of(row), running).total_s
    return row.tau * plain_s / step_s


def _checked(row: Row, predicted: float, replayed: Row | None) -> CheckedRow:
    assert row.speedup is not None
    assert row.tau is not None
    found = replayed.speedup.point if replayed is not None and replayed.speedup is not None else None
    return CheckedRow(
        method=label_of(row),
        category=row.category,
        batch=row.batch,
        temperature=row.temperature,
        tau=row.tau,
        measured=row.speedup.point,
        predicted=predicted,
        error=predicted / row.speedup.point - 1,
        predicted_from_steps=found,
        error_from_steps=None if found is None else found / row.speedup.point - 1,
    )


def _key(row: Row) -> tuple[object, ...]:
    return row.method, row.category, row.batch, row.temperature, row.state, row.forced_length
