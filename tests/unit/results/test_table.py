"""Tables say what the rows say: losing cells, labels, and what is unknown."""

import io

from rich.console import Console

from outrider.results.rows import Lossless, Report, Row
from outrider.results.statistics import Interval
from outrider.results.tables.table import markdown, print_report, sheets_of


def row(method: str, category: str = "chat", *, engine: str = "outrider", **more: object) -> Row:
    fields: dict[str, object] = {"batch": 1, "temperature": 0.0, "num_prompts": 2, "tokens_per_s": 50.0}
    return Row(engine=engine, method=method, category=category, **(fields | more))  # type: ignore[arg-type]


ROWS = (
    row("none", lossless=Lossless(verdict="exact")),
    row("fast", speedup=Interval(point=2.0, low=1.5, high=2.5), lossless=Lossless(verdict="ties", ties=3)),
    row("slow", speedup=Interval(point=0.8, low=0.7, high=0.9), state="warm"),
    row("fast", "all", speedup=Interval(point=1.5, low=None, high=None)),
    row("fast", "code", lossless=Lossless(verdict="violated", violations=1, where="code-01, token 7: margin 2")),
    row("generate", engine="transformers", speedup=Interval(point=0.5, low=0.4, high=0.8)),
)
REPORT = Report(run=None, target="tiny", dtype="float64", device="cpu", commit=None, notes=("a | b",), rows=ROWS)


def test_a_sheet_per_cell_and_one_for_external_baselines() -> None:
    ours, external = sheets_of(REPORT)
    assert [line[0] for line in ours.lines] == ["chat", "chat", "chat", "code", "all"]
    assert ours.styles == ("", "green", "red", "bold red", "")
    assert external.lines[0][1:] == ("transformers generate", "50.0", "-", "2.00 [1.25, 2.50]", "-")


def test_intervals_labels_and_verdicts_are_spelled_out() -> None:
    none, fast, slow, code, _ = sheets_of(REPORT)[0].lines
    assert "1 (baseline)" in none
    assert "2.00 [1.50, 2.50]" in fast
    assert fast[-1] == "exact but for 3 ties"
    assert slow[1] == "slow (warm)"
    assert slow[-1] == "unverified"
    assert code[-1] == "VIOLATED: code-01, token 7: margin 2"


def test_terminal_and_markdown_hold_every_line() -> None:
    console = Console(file=io.StringIO(), width=200)
    print_report(REPORT, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    text = markdown(REPORT)
    for sheet in sheets_of(REPORT):
        for line in sheet.lines:
            assert line[1] in shown
            assert f"| {' | '.join(line)} |" in text
    assert "- a | b" in shown
