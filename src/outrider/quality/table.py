"""Figures of quality as a table, for a terminal and for a page."""

from rich.console import Console

from outrider.quality.compare import Quality
from outrider.quality.report import Report
from outrider.records.files import size
from outrider.results.tables.fitting import print_sheet
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["print_report", "sheet_of"]

LEGEND = (
    "same token: positions with the reference's most probable token; KL: mean of KL(reference || candidate), nats;"
    " answers are the reference's own greedy text"
)
Row = tuple[str, str, int, Quality, Quality]


def print_report(report: Report, console: Console) -> None:
    """Print the table."""
    print_sheet(sheet_of(report), console)


def sheet_of(report: Report) -> Sheet[Row]:
    """Return the table of a report: the reference, then each candidate."""
    first, model = report.lines[0], report.reference
    rows = [
        ("reference", model.weights, model.weight_bytes, _itself(first.prompts), _itself(first.answers)),
        *[
            (line.label, line.model.weights, line.model.weight_bytes, line.prompts, line.answers)
            for line in report.lines
        ],
    ]
    counts = f"{first.prompts.num_positions:,} tokens of prompts and {first.answers.num_positions:,} of answers"
    return Sheet(
        f"{model.name}: {counts}",
        [
            Column("candidate", lambda row: row[0], kind="name", legend=LEGEND),
            Column("weights", lambda row: row[1], kind="text"),
            Column("memory", lambda row: size(row[2]), drop=1),
            Column("same token, prompts", lambda row: _percent(row[3].agreement)),
            Column("KL, prompts", lambda row: _nats(row[3].kl)),
            Column("perplexity, prompts", lambda row: f"{row[3].perplexity:.2f}"),
            Column("same token, answers", lambda row: _percent(row[4].agreement)),
            Column("KL, answers", lambda row: _nats(row[4].kl), drop=3),
            Column("perplexity, answers", lambda row: f"{row[4].perplexity:.3f}", drop=2),
        ],
        rows,
    )


def _itself(quality: Quality) -> Quality:
    """Return the figures of the reference against itself."""
    known = quality.reference_perplexity
    return Quality(
        num_positions=quality.num_positions, agreement=1.0, kl=0.0, reference_perplexity=known, perplexity=known
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _nats(value: float) -> str:
    """Return nats with the digits that tell candidates apart; rounding noise may be below zero.

    >>> _nats(0.00123), _nats(0.1), _nats(-1e-17)
    ('0.0012', '0.1000', '0.0000')
    """
    return f"{max(value, 0.0):.4f}"
