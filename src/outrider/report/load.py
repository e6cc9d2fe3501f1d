"""Sections on load: acceptance by position, and speedup by batch size.

Example: a run at batches 1, 4 and 16 has one line a method, and a ring where it begins to lose.
"""

from collections.abc import Callable, Sequence
from typing import Final

from outrider.report.answer import place_of
from outrider.report.cost import NAMES, drafted, first_setting
from outrider.report.parts import Figure, Section, table_of
from outrider.report.sources import Source
from outrider.results.best import Setting
from outrider.results.crossover import Curve as BatchCurve
from outrider.results.crossover import curves_of
from outrider.results.figures.lines import Curve, LineFigure
from outrider.results.pages.batches import batch_figure
from outrider.results.rows import PLAIN, Row
from outrider.results.tables.cells import accepted_text, interval_text, number_text
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["acceptance", "batches"]

DEPTHS: Final = 16
MOST_BANDS: Final = 4
"""Bands of more lines hide one another; the table has the intervals."""


def acceptance(source: Source) -> Section | None:
    """Return tau, and the share of drafts accepted up to each position."""
    if source.bench is None:
        return None
    every = [row for row in drafted(source.bench) if row.tau is not None]
    if not every:
        return None
    curves = tuple(
        Curve(
            f"{row.label} (tau {number_text(row.tau)})",
            tuple(float(place + 1) for place in range(len(reached))),
            reached,
        )
        for row in first_setting(source.bench)
        if (reached := (row.acceptance_per_pos or ())[:DEPTHS])
    )
    title = f"Share of drafts accepted up to a position, {place_of(Setting.of(every[0]))}"
    table = table_of(Sheet(title, ACCEPTED, every))
    drawn = LineFigure(title, curves=curves, x_name="position in the draft", most=1.0)
    says = (
        "Tau is the tokens per target forward, all steps counted. A line that falls slowly would bear longer drafts.",
    )
    if not curves:
        return Section("acceptance", "Tau and acceptance", says=says, tables=(table,))
    return Section("acceptance", "Tau and acceptance", says=says, figures=(Figure(drawn, table),))


ACCEPTED: Final[tuple[Column[Row], ...]] = (
    *NAMES,
    Column("tau", lambda row: number_text(row.tau)),
    Column("Mean acceptance length", lambda row: number_text(row.mean_acceptance_length)),
    Column("Steps with a draft", lambda row: _percent(row.draft_coverage)),
    Column("Wasted rows", lambda row: _percent(row.wasted_rows)),
    Column("Accepted up to position 1, 2, ...", lambda row: accepted_text(row, DEPTHS)),
)


def batches(source: Source) -> Section | None:
    """Return speedup by batch size and the batch at which each method begins to lose."""
    if source.bench is None:
        return None
    curves = [curve for curve in curves_of(source.bench) if curve.rows[0].method != PLAIN]
    if not curves:
        return None
    figures = []
    for temperature in dict.fromkeys(curve.temperature for curve in curves):
        members = [curve for curve in curves if curve.temperature == temperature]
        drawn = batch_figure(members, has_bands=len(members) <= MOST_BANDS)
        figures.append(Figure(drawn, table_of(Sheet(drawn.title, _columns(members), members))))
    says = (
        "Requests at once share the target's forward, so more of them leave less time to gain. A ring marks the batch "
        "at which a method begins to lose; a band is a 95 % interval, and the table has all of them.",
    )
    return Section("batch", "Speedup by batch size", says=says, figures=tuple(figures))


def _columns(curves: Sequence[BatchCurve]) -> list[Column[BatchCurve]]:
    sizes = sorted({batch for curve in curves for batch in curve.batches})
    return [
        Column("Method", lambda curve: curve.label, kind="name"),
        Column("Loses from batch", lambda curve: curve.words),
        *(Column(f"batch {size}", _at(size)) for size in sizes),
    ]


def _at(size: int) -> Callable[[BatchCurve], str]:
    return lambda curve: next((interval_text(row.speedup) for row in curve.rows if row.batch == size), "-")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}".replace("%", " %")
