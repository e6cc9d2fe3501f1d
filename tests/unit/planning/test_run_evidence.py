"""Acceptance read from a run's rows, and predictions held against a run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from outrider.costs.tables import DraftCosts, TargetCosts
from outrider.errors import ConfigError, RunError
from outrider.metrics import SlotStep, StepRecord
from outrider.planning.check import CostTables, check_run, retimed
from outrider.planning.run import (
    Evidence,
    acceptance_of,
    chosen_rows,
    label_of,
    mean_context,
    occupancy,
    read_run,
    shape_of,
)
from outrider.results.derive import derive_rows
from outrider.results.rows import PLAIN, Report, Row, to_json
from outrider.results.statistics import Interval
from outrider.results.unit import Answer, UnitResult, unit_id

ROW = Row(
    engine="outrider",
    method="m",
    category="chat",
    batch=1,
    temperature=0.0,
    num_prompts=1,
    tau=1.75,
    mean_acceptance_length=1.75,
    draft_coverage=1.0,
    draft_acceptance_rate=0.375,
    acceptance_per_pos=(0.5, 0.25),
    conditional_acceptance_per_pos=(0.5, 0.5),
    speedup=Interval(point=1.4, low=None, high=None),
)


@dataclass(frozen=True)
class Rows(TargetCosts):
    """9 and 1 for each row, and a little for the context."""

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        return 9.0 + num_rows + 1e-3 * context

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        return 0.25

    def rest_s(self, num_slots: int) -> float:
        return 0.75


@dataclass(frozen=True)
class PerNode(DraftCosts):
    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return 0.5 * num_nodes


TABLES = CostTables(target=Rows(), drafts={"m": PerNode()})


def report(*rows: Row) -> Report:
    return Report(run="r", target="t", dtype="float64", device="cpu", commit=None, rows=rows)


def unit(method: str, accepted: list[list[int]], nodes: int, repeat: int = 0, **changes: Any) -> UnitResult:
    """One answer; a step for every list of `accepted`, with one slot per entry."""
    steps, context = [], 50
    for index, slots in enumerate(accepted):
        record = tuple(SlotStep(7 + b, context, nodes, nodes, taken, taken + 1, False) for b, taken in enumerate(slots))
        steps.append(StepRecord(index, nodes + 1, True, record, 0.1, 1.0, 0.1, 0.1, 0.1))
        context += 1
    count = sum(taken + 1 for slots in accepted for taken in slots)
    answer = Answer(
        conversation="c", turn=0, request=7, seed=0, num_prompt_tokens=4, tokens=(0,) * count, ttft_s=1.0, latency_s=9.0
    )
    fields: dict[str, Any] = {
        "method": method,
        "category": "chat",
        "batch": len(accepted[0]),
        "temperature": 0.0,
        "repeat": repeat,
        "conversations": ("c",),
        "answers": (answer,),
        "steps": tuple(steps),
        "wall_s": 9.0,
    } | changes
    name = (fields["method"], "chat", fields["batch"], fields["temperature"], repeat)
    return UnitResult(unit=unit_id(*name, ["c"], state=fields.get("state", "cold")), **fields)


def test_the_worked_example() -> None:
    shape = shape_of(ROW)
    assert (shape.num_nodes, shape.depth, shape.coverage, shape.tau) == (2.0, 2, 1.0, 1.75)
    acceptance = acceptance_of(ROW)
    assert acceptance.width == 1.0
    assert acceptance.draft(2, 2).tau == 1.75


def test_a_lookup_fills_less_than_its_room_and_a_tree_more() -> None:
    short = replace(ROW, draft_acceptance_rate=0.5, draft_coverage=0.4)
    assert (acceptance_of(short).width, acceptance_of(short).coverage) == (0.75, 0.4)
    tree = replace(ROW, draft_acceptance_rate=None, node_efficiency=0.125)
    assert acceptance_of(tree).width == 3.0


def test_a_draft_that_was_never_right_has_as_many_nodes_as_levels() -> None:
    never = replace(
        ROW,
        mean_acceptance_length=1.0,
        draft_acceptance_rate=0.0,
        acceptance_per_pos=(0.0, 0.0),
        conditional_acceptance_per_pos=(0.0, 0.0),
    )
    assert shape_of(never).num_nodes == 2.0


def test_rows_are_chosen_by_category_temperature_and_smallest_batch() -> None:
    rows = [replace(ROW, batch=4), ROW, replace(ROW, method="other"), replace(ROW, temperature=1.0, method="hot")]
    rows += [replace(ROW, method=PLAIN, acceptance_per_pos=()), replace(ROW, state="warm"), replace(ROW, engine="x")]
    found = chosen_rows(report(*rows), "all", 0.0)
    assert [(label_of(row), row.batch) for row in found] == [("m", 1), ("other", 1), ("m (warm)", 1)]
    with pytest.raises(ConfigError, match=r"no rows at temperature 0\.5; it has 0, 1"):
        chosen_rows(report(*rows), "all", 0.5)
    with pytest.raises(ConfigError, match="no category 'chad'; did you mean 'chat'"):
        chosen_rows(report(*rows), "chad", 0.0)
    with pytest.raises(ConfigError, match="measured no method that drafts"):
        chosen_rows(report(), "all", 0.0)


def test_the_row_is_predicted_by_hand() -> None:
    check = check_run(Evidence(report(ROW), ()), TABLES, 100.0, "r")
    predicted = 1.75 * (10.1 + 1) / (12.1 + 1 + 1)
    assert check.rows[0].predicted == pytest.approx(predicted)
    assert check.rows[0].error == pytest.approx(predicted / 1.4 - 1)
    assert check.median_error == abs(check.rows[0].error)
    assert check.rows[0].predicted_from_steps is None
    assert check.median_error_from_steps is None


def test_steps_are_priced_by_their_own_shape() -> None:
    step = retimed(unit("m", [[2, 0]], 3), TABLES).steps[0]
    assert step.verify_s == pytest.approx(9 + 8 + 0.05)
    assert step.propose_s == pytest.approx(3.0)
    assert (step.accept_s, step.commit_s, step.host_s) == (0.25, 0.0, 0.75)


def test_a_run_timed_by_the_tables_themselves_is_predicted_without_error() -> None:
    plain = [unit(PLAIN, [[0]] * 6, 0, repeat) for repeat in (0, 1)]
    drafted = [unit("m", [[2], [1], [0]], 2, repeat) for repeat in (0, 1)]
    units = [retimed(one, TABLES) for one in (*plain, *drafted)]
    check = check_run(Evidence(report(*derive_rows(units)), tuple(units)), TABLES, 999.0, "r")
    row = check.rows[0]
    assert row.method == "m"
    assert row.error_from_steps == pytest.approx(0)
    assert check.median_error_from_steps == pytest.approx(0)
    assert abs(row.error) < 1e-3  # the two methods read contexts of slightly other lengths


def test_slots_that_ran_empty_count() -> None:
    """Two requests of which one ends after two of four steps: of six slot steps four were in company."""
    queue = [[0, 0], [0, 0], [0], [0]]
    units = [unit("m", queue, 2, batch=2)]
    assert occupancy(units, 2) == {2: pytest.approx(4 / 6), 1: pytest.approx(2 / 6)}
    assert occupancy([], 2) == {2: 1.0}
    row = replace(ROW, batch=2)
    check = check_run(Evidence(report(row), tuple(units)), TABLES, 0.0, "r")
    context = 1e-3 * mean_context(units, 0.0)
    plain_s = 4 / 6 / 2 * (12 + context) + 2 / 6 * (11 + context)
    step_s = 4 / 6 / 2 * (16 + context + 2) + 2 / 6 * (13 + context + 1)
    assert check.rows[0].predicted == pytest.approx(1.75 * plain_s / step_s)


def test_what_the_run_itself_took_is_not_asked() -> None:
    units = [unit(PLAIN, [[0]] * 6, 0), unit("m", [[2], [1], [0]], 2)]
    slower = [replace(units[0], steps=tuple(replace(step, verify_s=9.0) for step in units[0].steps)), units[1]]
    found = [
        check_run(Evidence(report(*derive_rows(run)), tuple(run)), TABLES, 1.0, "r").rows[0] for run in (units, slower)
    ]
    assert found[0].measured != found[1].measured
    assert found[0].predicted == found[1].predicted
    assert found[0].predicted_from_steps == found[1].predicted_from_steps


def test_methods_without_costs_are_left_out_and_named() -> None:
    check = check_run(Evidence(report(ROW, replace(ROW, method="new")), ()), TABLES, 1.0, "r")
    assert (len(check.rows), check.left_out) == (1, ("new",))
    with pytest.raises(ConfigError, match="no row that can be checked; the costs hold no table of new"):
        check_run(Evidence(report(replace(ROW, method="new")), ()), TABLES, 1.0, "r")


def test_a_label_finds_the_only_table_of_its_method() -> None:
    assert TABLES.of("m:num_nodes=2") is TABLES.drafts["m"]
    assert TABLES.of("m (warm)") is TABLES.drafts["m"]
    two = CostTables(target=Rows(), drafts={"m:a=1": PerNode(), "m:a=2": PerNode()})
    assert two.of("m:a=2") is two.drafts["m:a=2"]
    assert two.of("m:a=3") is None


def test_context_is_the_mean_over_slot_steps() -> None:
    assert mean_context([unit("m", [[0], [0], [0]], 1)], 7.0) == 51
    assert mean_context([], 7.0) == 7.0


def test_a_run_is_read_with_its_units(tmp_path: Path) -> None:
    one = unit("m", [[1], [0]], 2)
    (tmp_path / "report.json").write_text(to_json(report(ROW)) + "\n", encoding="utf-8")
    assert read_run(tmp_path) == read_run(tmp_path / "report.json") == Evidence(report(ROW), ())
    (tmp_path / "units.jsonl").write_text(one.to_json() + "\n", encoding="utf-8")
    assert read_run(tmp_path).units == (one,)
    with pytest.raises(RunError, match="give the directory of a finished"):
        read_run(tmp_path / "absent")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="cannot be read"):
        read_run(tmp_path)
