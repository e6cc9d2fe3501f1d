"""Sections show the numbers of their rows: figures are read back from their SVG, tables from their cells."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import ATTACK, trace

from drawings import parsed, paths, scale
from outrider.costs.tuned import TunedSpeedup
from outrider.metrics import SlotStep, StepRecord
from outrider.report.contents import sections_of, shared_sections
from outrider.report.page import page_of
from outrider.report.parts import Section
from outrider.report.sources import Source, read_source
from outrider.results.rows import Lossless, Report, Row, Waterfall
from outrider.results.statistics import Interval, Percentiles
from outrider.results.unit import Answer, UnitResult
from outrider.tuning.outcome.report import TUNE_SCHEMA, CheckedChoice, TuneReport

ROOT = Path(__file__).parents[3]


def row(method: str, batch: int = 1, speedup: float = 1.89, **changes: Any) -> Row:
    return Row(
        engine="outrider",
        method=method,
        category="chat",
        batch=batch,
        temperature=0.0,
        num_prompts=4,
        tokens_per_s=100.0,
        tau=2.4,
        speedup=Interval(point=speedup, low=speedup - 0.1, high=speedup + 0.1),
        lossless=Lossless(verdict="exact"),
        **changes,
    )


DRAFTED = row(
    "head",
    acceptance_per_pos=(0.8, 0.4),
    predicted_speedup=2.0,
    waterfall=Waterfall(ideal=2.4, with_verify=2.03, with_draft=1.89, with_host=1.9, measured=1.8),
    shares={"propose": 0.25, "verify": 0.5, "accept": 0.125, "commit": 0.0625, "host": 0.0625},
    ttft_s=Percentiles(p50=0.02, p95=0.05, p99=0.08),
    tpot_s=Percentiles(p50=0.004, p95=0.005, p99=0.006),
    memory_bytes={"proposer_weights": 3_000_000, "proposer_cache": 1_000_000, "proposer_cache_per_token": 8},
)


@pytest.fixture
def source() -> Source:
    rows = (row("none"), DRAFTED, row("head", batch=4, speedup=0.75))
    report = Report(run="runs/x", target="t; rm -rf", dtype="float32", device="cpu", commit=None, rows=rows)
    return Source(name="x", path=Path("runs/x"), bench=report)


@pytest.fixture
def sections(source: Source) -> dict[str, Section]:
    return {section.name: section for section in sections_of(source)}


def ends(section: Section, name: str, place: int = 0) -> list[tuple[float, float]]:
    """Start and end of every bar or mark of a figure, in the units of its axis."""
    drawing = parsed(section.figures[place].drawing.svg(820, None))
    zero, unit = scale(drawing, "x")
    xs = [[(x - zero) / unit for x, _ in path] for path in paths(drawing, name)]
    return [(round(min(one), 2), round(max(one), 2)) for one in xs]


def cells(section: Section, place: int = 0) -> list[list[str]]:
    return [[cell.text for cell in line] for line in section.figures[place].table.lines]


def test_the_waterfall_falls_from_tau_to_what_was_measured(sections: dict[str, Section]) -> None:
    assert ends(sections["waterfall"], "bar") == [
        (0, 2.4),
        (2.03, 2.4),
        (1.89, 2.03),
        (1.89, 1.9),
        (1.8, 1.9),
        (0, 1.8),
    ]
    assert cells(sections["waterfall"])[0][-5:] == ["2.40", "2.03", "1.89", "1.90", "1.80"]


def test_shares_fill_the_width(sections: dict[str, Section]) -> None:
    assert ends(sections["time"], "bar") == [(0, 25), (25, 75), (75, 87.5), (87.5, 93.75), (93.75, 100)]


def test_acceptance_is_drawn_by_position(sections: dict[str, Section]) -> None:
    drawing = parsed(sections["acceptance"].figures[0].drawing.svg(820, None))
    (zero, unit), (curve,) = scale(drawing, "y"), paths(drawing, "curve")
    assert [round((y - zero) / unit, 2) for _, y in curve] == [0.8, 0.4]


def test_the_crossover_is_named(sections: dict[str, Section]) -> None:
    # log 1.89 / (log 1.89 - log 0.75) of the two doublings from 1 to 4: 4 ** 0.6887 = 2.6
    assert cells(sections["batch"])[0][1].startswith("2.6")


def test_predictions_stand_beside_measurements(sections: dict[str, Section]) -> None:
    assert cells(sections["predicted"]) == [
        ["head", "chat", "batch 1, temperature 0", "2.00", "1.89 [1.79, 1.99]", "+5.8 %"]
    ]
    assert "off by 5.8 % at the median and by 5.8 % at most" in sections["predicted"].says[0]


def test_latency_is_in_milliseconds(sections: dict[str, Section]) -> None:
    assert ends(sections["latency"], "bar") == [(20, 50), (50, 80)]
    assert cells(sections["latency"], 1)[0][-3:] == ["4.0", "5.0", "6.0"]


def test_recorded_latency_is_drawn_as_the_share_within_a_time(source: Source) -> None:
    def unit(conversation: str, ttft_ms: float, steps_ms: tuple[float, ...]) -> UnitResult:
        """An answer of 4 tokens a step; its first step is within the time to the first token."""
        slot = SlotStep(0, 0, num_nodes=3, draft_depth=3, num_accepted=3, num_emitted=4, finished=False)
        records = tuple(StepRecord(0, 4, True, (slot,), 0.0, one / 1000, 0.0, 0.0, 0.0) for one in (1, *steps_ms))
        answer = Answer(
            conversation=conversation,
            turn=0,
            request=0,
            seed=0,
            num_prompt_tokens=1,
            tokens=(1,) * 4 * len(records),
            ttft_s=ttft_ms / 1000,
            latency_s=(ttft_ms + sum(steps_ms)) / 1000,
        )
        return UnitResult(
            unit=conversation,
            method="head",
            category="chat",
            batch=1,
            temperature=0.0,
            repeat=0,
            conversations=(conversation,),
            answers=(answer,),
            steps=records,
            wall_s=1.0,
        )

    units = (unit("a", 10, (4, 4)), unit("b", 30, (8,)), replace(unit("c", 500, (9,)), batch=4))
    sections = {one.name: one for one in sections_of(replace(source, units=units))}
    curves = []
    for figure in sections["latency"].figures:
        drawing = parsed(figure.drawing.svg(820, None))
        (zero_x, unit_x), (zero_y, unit_y) = scale(drawing, "x"), scale(drawing, "y")
        (curve,) = paths(drawing, "curve")
        curves.append([(round((x - zero_x) / unit_x, 1), round((y - zero_y) / unit_y)) for x, y in curve])
    assert curves[0] == [(10, 0), (10, 50), (30, 50), (30, 100), (30, 100)]
    assert curves[1] == [(1, 0), (1, 50), (2, 50), (2, 100), (2, 100)]
    assert curves[2] == [(4, 0), (4, 33), (4, 33), (4, 67), (8, 67), (8, 100), (8, 100)]
    assert cells(sections["latency"], 2) == [["head", "3", "4.0", "7.6", "7.9"]]


def test_memory_is_weights_and_session(sections: dict[str, Section]) -> None:
    assert ends(sections["memory"], "bar") == [(0, 3), (3, 4)]


def test_commands_for_missing_data_are_quoted(sections: dict[str, Section]) -> None:
    items = sections["missing"].items
    assert any(line.startswith("outrider quality 't; rm -rf'  #") for line in items)
    assert not any("--batches" in line for line in items)


def test_two_runs_stand_side_by_side(source: Source) -> None:
    (shared,) = shared_sections([source, replace(source, name="y")])
    assert cells(shared)[:2] == [
        ["1: x", "outrider", "none", "chat", "100.0", "1.89 [1.79, 1.99]", "2.40"],
        ["2: y", "outrider", "none", "chat", "100.0", "1.89 [1.79, 1.99]", "2.40"],
    ]
    assert shared_sections([source]) == []


def test_quality_is_the_share_of_other_tokens() -> None:
    path = ROOT / "docs" / "results" / "quality.jsonl"
    sections = {section.name: section for section in sections_of(read_source(path))}
    lines = json.loads(path.read_text(encoding="utf-8"))["lines"]
    wanted = [round(100 * (1 - line[kind]["agreement"]), 2) for line in lines for kind in ("prompts", "answers")]
    assert [end for _, end in ends(sections["quality"], "bar")] == [pytest.approx(one, abs=0.03) for one in wanted]


def test_tuning_says_what_it_chose_and_how_well_it_predicted() -> None:
    tune = TuneReport(
        schema=TUNE_SCHEMA,
        run="runs/t",
        target="t",
        machine="m",
        temperature=0.0,
        concurrency=(1, 4),
        is_prediction=False,
        method="head",
        budget="auto",
        sentence="Use head.",
        speedups=(TunedSpeedup(concurrency=1, point=1.5, low=1.4, high=1.6),),
        off_from=None,
        crossover=3.0,
        limit=None,
        waterfall=None,
        rows=(),
        checks=(CheckedChoice(method="head", budget="auto", concurrency=1, predicted=1.65, measured=1.5, error=0.1),),
        median_error=0.1,
        forecasts=(),
        refused=(),
        num_prompts=4,
        num_degenerate=0,
        notes=(),
    )
    sections = {one.name: one for one in sections_of(Source(name="t", path=Path("runs/t"), tune=tune))}
    assert cells(sections["tuned"]) == [["1", "1.50 [1.40, 1.60]"]]
    assert cells(sections["predicted"]) == [["head", "auto", "1", "1.65", "1.50", "+10.0 %"]]
    assert "Drafting pays up to 3.0 requests at once." in sections["tuned"].says


def test_recorded_text_has_its_script_allowed_and_nothing_else(source: Source) -> None:
    page = page_of([replace(source, traces=(trace(),))])
    assert "script-src &#39;sha256-" in page
    assert page.count("<script") == 2  # the data, and the component
    assert ATTACK not in page
    assert "ribbon" not in {section.name for section in sections_of(source)}
