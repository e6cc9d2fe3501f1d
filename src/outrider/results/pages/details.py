"""Why each cell of a run came out as it did: acceptance, what a step cost, and what follows from both.

One line per cell that speculated. Costs are in plain steps, so that a line can be added up:

    predicted = tau / (verify + draft + rest)        pays where tau is above verify + draft + rest, the break-even

Example: tau 2.00, verify 1.09, draft 0.12, rest 0.02: break-even 1.23, predicted 1.63.
"""

from collections.abc import Mapping, Sequence

from outrider.records.display import markdown_code, markdown_text
from outrider.results.pages.results import category_places, interval_text, our_rows
from outrider.results.rows import PLAIN, Report, Row

__all__ = ["detail_table"]

HEAD = (
    "Prompts",
    "Method",
    "batch, T",
    "tau",
    "length",
    "accepted at depth 1, 2, ...",
    "verify",
    "draft",
    "rest",
    "break-even",
    "predicted",
    "measured",
    "end to end",
    "time: propose verify rest",
    "text",
)
DEPTHS = 4


def detail_table(report: Report) -> str:
    """The run as Markdown."""
    rows = [row for row in our_rows(report) if row.method != PLAIN]
    places = category_places(rows)
    rows.sort(key=lambda row: (places[row.category], row.batch, row.temperature))
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join(lines + ["| " + " | ".join(_cells(row)) + " |" for row in rows])


def _cells(row: Row) -> Sequence[str]:
    return (
        markdown_text(row.category),
        markdown_code(row.label),
        f"{row.batch}, {row.temperature:g}",
        _number(row.tau),
        _number(row.mean_acceptance_length),
        " ".join(_number(share) for share in (row.acceptance_per_pos or ())[:DEPTHS]) or "-",
        _number(row.verify_cost_ratio),
        _number(row.draft_cost_ratio),
        _number(row.overhead_ratio),
        _number(row.break_even_tau),
        _number(row.predicted_speedup),
        interval_text(row.speedup),
        interval_text(row.speedup_end_to_end),
        _shares(row.shares),
        row.lossless.verdict if row.lossless.verdict != "ties" else f"{row.lossless.ties} ties",
    )


def _shares(shares: Mapping[str, float] | None) -> str:
    if shares is None:
        return "-"
    propose, verify = shares["propose"], shares["verify"]
    return f"{propose:.0%} {verify:.0%} {1 - propose - verify:.0%}".replace("%", " %")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
