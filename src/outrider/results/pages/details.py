"""An explanation of each cell of a run: acceptance, the cost of a step, and what follows from both.

One line per cell that speculated. Costs are in plain steps, so that a line can be added up:

    predicted = tau / (verify + draft + rest)        pays where tau is above verify + draft + rest, the break-even

Example: tau 2.00, verify 1.09, draft 0.12, rest 0.02: break-even 1.23, predicted 1.63.
"""

from operator import attrgetter

from outrider.results.pages.results import our_rows
from outrider.results.rows import PLAIN, Report, Row
from outrider.results.tables.cells import accepted_text, by_category, interval_text, number_text
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["detail_table"]

DEPTHS = 4


def detail_table(report: Report) -> str:
    """Return the run as Markdown."""
    rows = [row for row in our_rows(report) if row.method != PLAIN]
    return Sheet("", COLUMNS, by_category(sorted(rows, key=lambda row: (row.batch, row.temperature)))).markdown


def _number(head: str, field: str) -> Column[Row]:
    return Column(head, lambda row: number_text(attrgetter(field)(row)), kind="raw")


def _shares(row: Row) -> str:
    if row.shares is None:
        return "-"
    propose, verify = row.shares["propose"], row.shares["verify"]
    return f"{propose:.0%} {verify:.0%} {1 - propose - verify:.0%}".replace("%", " %")


def _verdict(row: Row) -> str:
    return f"{row.lossless.ties} ties" if row.lossless.verdict == "ties" else row.lossless.verdict


COLUMNS: tuple[Column[Row], ...] = (
    Column("Prompts", lambda row: row.category, kind="text"),
    Column("Method", lambda row: row.label, kind="code"),
    Column("batch, T", lambda row: f"{row.batch}, {row.temperature:g}", kind="raw"),
    _number("tau", "tau"),
    _number("length", "mean_acceptance_length"),
    Column("accepted at depth 1, 2, ...", lambda row: accepted_text(row, DEPTHS), kind="raw"),
    _number("verify", "verify_cost_ratio"),
    _number("draft", "draft_cost_ratio"),
    _number("rest", "overhead_ratio"),
    _number("break-even", "break_even_tau"),
    _number("predicted", "predicted_speedup"),
    Column("measured", lambda row: interval_text(row.speedup), kind="raw"),
    Column("end to end", lambda row: interval_text(row.speedup_end_to_end), kind="raw"),
    Column("time: propose verify rest", _shares, kind="raw"),
    Column("text", _verdict, kind="raw"),
)
