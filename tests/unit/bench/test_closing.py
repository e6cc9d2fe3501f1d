"""The last lines of a benchmark, on filed reports and on rows made by hand."""

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from outrider.bench.closing import closing_lines
from outrider.proposers.method_spec import MethodSpec, method_specs
from outrider.results.rows import Lossless, Report, Row, from_json
from outrider.results.statistics import Interval
from outrider.results.tables.table import markdown, print_report

FILED = Path(__file__).parents[3] / "docs" / "results"


def filed(name: str) -> tuple[Report, list[MethodSpec]]:
    """A report in docs/results, and the methods that its manifest names."""
    settings = json.loads((FILED / f"{name}.manifest.json").read_text("utf-8"))["settings"]
    return from_json((FILED / f"{name}.json").read_text("utf-8")), method_specs(settings["methods"])


@pytest.mark.parametrize("name", ["batch", "heads-chat"])
def test_the_best_of_a_filed_run_is_named_for_each_batch(name: str) -> None:
    report, methods = filed(name)
    lines = closing_lines(report, methods)
    rows = json.loads((FILED / f"{name}.json").read_text("utf-8"))["rows"]
    for batch in dict.fromkeys(row["batch"] for row in rows if row["engine"] == "outrider"):
        cell = [row for row in rows if row["batch"] == batch and row["speedup"] and row["engine"] == "outrider"]
        summed = [row for row in cell if row["category"] == "all"] or cell
        real = [row for row in summed if row["method"] != "none" and not row.get("scripted")]
        best = max(real, key=lambda row: row["speedup"]["point"])
        [line] = [line for line in lines if line.removeprefix("best at ").startswith(f"batch {batch}:")]
        assert best["method"] in line
        assert f"{best['speedup']['point']:.2f}" in line
        pays = (best["speedup"]["low"] or best["speedup"]["point"]) > 1
        assert line.startswith("best at ") == pays
        assert ("leave drafting off" in line) != pays
    assert lines[-1].startswith(f"report: {report.run}/report.md")


def test_the_command_runs_the_best_method_with_its_settings() -> None:
    report, methods = filed("heads-chat")
    best, command, _ = closing_lines(report, methods)
    assert best.startswith("best at batch 1: hybrid, ")
    words = shlex.split(command)
    assert words[:2] == ["outrider", "generate"]
    assert words[words.index("--target") + 1] == "smollm2-135m"
    [spec] = method_specs([words[words.index("--method") + 1]])
    assert spec.settings == next(one.settings for one in methods if one.name == "hybrid")


def row(method: str, point: float | None = None, low: float | None = None, **more: object) -> Row:
    speedup = None if point is None else Interval(point=point, low=low, high=None if low is None else 2 * point - low)
    fields: dict[str, object] = {"engine": "outrider", "category": "chat", "batch": 1, "temperature": 0.0}
    fields |= {"num_prompts": 2, "lossless": Lossless(verdict="exact")}
    return Row(method=method, speedup=speedup, **(fields | more))  # type: ignore[arg-type]


def closing(*rows: Row, methods: tuple[str, ...] = ("ngram", "suffix")) -> tuple[str, ...]:
    plain = () if any(one.method == "none" for one in rows) else (row("none"),)
    report = Report(run="runs/x", target="a/b", dtype="bf16", device="cpu", commit=None, rows=(*plain, *rows))
    *lines, place = closing_lines(report, method_specs(methods))
    assert place == "report: runs/x/report.md with all columns; as data: report.json there"
    return tuple(lines)


def test_a_smaller_gain_that_is_sure_comes_before_a_larger_one_that_is_not() -> None:
    best, command = closing(row("ngram", 1.5, 0.9), row("suffix", 1.2, 1.1))
    assert best == "best at batch 1: suffix, 1.20 [1.10, 1.30] times plain decoding"
    assert command == "  outrider generate 'Why is the sky blue?' --target a/b --method suffix"


def test_what_is_no_method_or_was_not_lossless_is_passed_over() -> None:
    violated = Lossless(verdict="violated", violations=1)
    found = closing(row("ngram", 9.0, 8.0, lossless=violated), row("oracle", 7.0, 6.0, scripted=True))
    assert found == ()
    best, _ = closing(row("ngram", 2.0, 1.9, lossless=Lossless()), row("suffix", 1.2, 1.1))
    assert best.endswith("times plain decoding, unverified")


def test_an_adaptive_budget_and_another_engine_have_their_own_commands() -> None:
    _, command = closing(row("suffix auto", 1.2, 1.1))
    assert command.endswith("--method suffix --budget auto")
    best, command = closing(row("none", engine="vllm"), row("ngram", 1.2, 1.1, engine="vllm"))
    assert best.startswith("best at vllm, batch 1: ngram")
    assert command.startswith("  vllm serve a/b --speculative-config ")


@pytest.mark.parametrize(("spread", "is_said"), [(None, False), (0.05, False), (0.25, True)])
def test_a_disturbed_machine_is_said(spread: float | None, is_said: bool) -> None:
    lines = closing(row("none", repeat_spread=spread), row("suffix", 1.2, 1.1, repeat_spread=0.5))
    assert [line for line in lines if "disturbed" in line] == [
        line for line in lines if is_said and "repeats were 25% apart" in line
    ]
    assert any("disturbed" in line for line in lines) == is_said


def test_closing_lines_end_the_table_and_the_page() -> None:
    report, methods = filed("heads-chat")
    report = replace(report, closing=closing_lines(report, methods))
    console = Console(file=io.StringIO(), width=90)
    print_report(report, console)
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(report.closing[1]) > 90
    assert tuple(shown[-3:]) == report.closing  # a command is not wrapped
    assert report.closing[1].strip() in markdown(report)
