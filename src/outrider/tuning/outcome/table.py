"""The result on a terminal: the sentence, then what stands behind it.

Example: `print_tuned(report, console)` prints the verdict, one table of cells, one of predictions, and the notes.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from outrider.results.statistics import Interval
from outrider.results.tables.cells import interval_text, number_text
from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.serving import serving_sheets
from outrider.results.tables.sheet import LOSES, WINS, Column, Sheet
from outrider.tuning.outcome.report import CheckedChoice, Forecast, TuneReport, TuneRow

__all__ = ["print_tuned", "sheets_of"]

MOST_FORECASTS = 10
ALL = "all"


def print_tuned(report: TuneReport, console: Console) -> None:
    """Print the result."""
    print_note(report.sentence, console, style="bold")
    for sheet in sheets_of(report):
        print_sheet(sheet, console)
    console.print()
    for note in _notes(report):
        print_note(f"- {note}", console)
    console.print()
    for line in report.deploy:
        print_note(line, console)


def sheets_of(report: TuneReport) -> list[Sheet[Any]]:
    """Return the tables: the choice by category, all that was measured, predictions beside it."""
    sheets = [] if report.served is None else serving_sheets(report.served.rows)
    own = [row for row in report.rows if (row.method, row.budget) == (report.method, report.budget)]
    if own and report.method != "none" and not sheets:
        sheets.append(Sheet(f"{report.method}, budget {report.budget}", CELLS, own, _style))
    whole = [row for row in report.rows if row.category == ALL and row.speedup is not None]
    if whole and not sheets:
        sheets.append(Sheet("all that was measured, over all prompts", WHOLE, whole, _style))
    if report.checks:
        sheets.append(Sheet("predicted beside measured", CHECKS, report.checks))
    if report.forecasts:
        title = "best of the predictions"
        sheets.append(Sheet(title, _forecast_columns(report.concurrency), report.forecasts[:MOST_FORECASTS]))
    return sheets


def _notes(report: TuneReport) -> list[str]:
    notes = []
    if report.limit:
        notes.append(f"limited by {report.limit}")
    if report.crossover is not None:
        notes.append(
            "drafting in every step loses even with the fewest requests"
            if report.crossover == 0
            else f"drafting in every step breaks even at about {report.crossover:.1f} requests at once"
        )
    if report.median_error is not None:
        notes.append(f"predictions were off by {100 * report.median_error:.1f} % (median of those measured)")
    counted = f"{report.num_prompts} prompts; {report.num_degenerate} others had a loop as their answer"
    notes.append(counted if report.num_degenerate else f"{report.num_prompts} prompts, no answer of which is a loop")
    notes += report.notes
    notes += [f"refused: {one.name}, for {one.reason}" for one in report.refused]
    return notes


def _style(row: TuneRow) -> str:
    speedup = row.speedup
    if speedup is None or speedup.low is None or speedup.high is None:
        return ""
    return WINS if speedup.low > 1 else LOSES if speedup.high < 1 else ""


def _speedup(interval: Interval | None) -> str:
    return interval_text(interval)


SPEEDUP: Column[TuneRow] = Column(
    "speedup", lambda row: _speedup(row.speedup), legend="speedup: over plain decoding, with its 95 % interval"
)
METHOD: tuple[Column[TuneRow], ...] = (
    Column("method", lambda row: row.method, kind="name"),
    Column("budget", lambda row: row.budget, kind="text", drop=4),
)
BASIC: tuple[Column[TuneRow], ...] = (
    Column("requests", lambda row: str(row.concurrency), legend="requests: at once"),
    Column("prompts", lambda row: str(row.num_prompts), drop=2),
    Column("tau", lambda row: number_text(row.tau), drop=3, legend="tau: tokens per target forward"),
    SPEEDUP,
    Column("lossless", lambda row: row.lossless, kind="text", drop=1),
)
CELLS: tuple[Column[TuneRow], ...] = (Column("category", lambda row: row.category, kind="name"), *BASIC)
WHOLE: tuple[Column[TuneRow], ...] = (*METHOD, *BASIC)
CHECKS: tuple[Column[CheckedChoice], ...] = (
    Column("method", lambda row: row.method, kind="name"),
    Column("budget", lambda row: row.budget, kind="text"),
    Column("requests", lambda row: str(row.concurrency)),
    Column("predicted", lambda row: number_text(row.predicted)),
    Column("measured", lambda row: number_text(row.measured)),
    Column("error", lambda row: f"{100 * row.error:+.1f} %"),
)


def _forecast_columns(concurrency: Sequence[int]) -> tuple[Column[Forecast], ...]:
    def at(index: int) -> Column[Forecast]:
        return Column(f"at {concurrency[index]}", lambda row: number_text(row.speedups[index]))

    return (
        Column("method", lambda row: row.method, kind="name"),
        Column("budget", lambda row: row.budget, kind="text", drop=1),
        *(at(index) for index in range(len(concurrency))),
        Column(
            "score", lambda row: number_text(row.score), legend="score: geometric mean over the numbers of requests"
        ),
    )
