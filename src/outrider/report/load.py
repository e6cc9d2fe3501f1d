"""Sections on load and latency: acceptance by position, speedup by batch size, times that a user feels.

Example: a run at batches 1, 4 and 16 has one line a method, and a ring where it begins to lose.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from outrider.report.answer import place_of
from outrider.report.cost import NAMES, drafted, first_setting
from outrider.report.parts import Figure, Section, table_of
from outrider.report.sources import Source
from outrider.results.best import OURS, Setting, settings_of
from outrider.results.crossover import Curve as BatchCurve
from outrider.results.crossover import curves_of
from outrider.results.figures.bars import BarFigure, BarRow, Mark, Segment
from outrider.results.figures.canvas import Colour
from outrider.results.figures.lines import Curve, LineFigure
from outrider.results.pages.batches import batch_figure
from outrider.results.rows import PLAIN, SERVING, Row
from outrider.results.statistics import Percentiles
from outrider.results.tables.cells import accepted_text, by_category, interval_text, number_text
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["acceptance", "batches", "latency"]

DEPTHS: Final = 16


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
        drawn = batch_figure(members)
        figures.append(Figure(drawn, table_of(Sheet(drawn.title, _columns(members), members))))
    says = (
        "Requests at once share the target's forward, so more of them leave less time to gain. A ring marks the batch "
        "at which a method begins to lose.",
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


def latency(source: Source) -> Section | None:
    """Return the distributions of the time to the first token and of the time for each token after it."""
    if source.bench is None:
        return None
    rows = [row for row in by_category(source.bench.rows) if row.engine in (OURS, *SERVING)]
    if not any(row.ttft_s or row.tpot_s for row in rows):
        return None
    setting = next(iter(settings_of(rows)))
    members = [row for row in rows if Setting.of(row) == setting]
    shown = [row for row in members if row.category == "all"] or members
    kinds: tuple[tuple[str, Callable[[Row], Percentiles | None]], ...] = (
        ("Time to the first token, ms", lambda row: row.ttft_s),
        ("Time for each token after the first burst, ms", lambda row: row.tpot_s),
    )
    figures = [
        Figure(drawn, table_of(Sheet(drawn.title, _latencies(pick), [row for row in rows if pick(row)])))
        for name, pick in kinds
        if (drawn := _ranges(f"{name}, {place_of(setting)}", shown, pick)).rows
    ]
    says = ("The disc is the median; the bar reaches from there to the 95th percentile, its pale end to the 99th.",)
    return Section("latency", "Latency", says=says, figures=tuple(figures)) if figures else None


def _ranges(title: str, rows: Sequence[Row], pick: Callable[[Row], Percentiles | None]) -> BarFigure:
    bars = []
    for row in rows:
        found = pick(row)
        if found is None or not math.isfinite(found.p99):
            continue
        low, high, last = (1000 * value for value in (found.p50, found.p95, found.p99))
        bars.append(
            BarRow(
                row.label,
                group="" if row.category == "all" else row.category,
                segments=(Segment(low, high, Colour.FASTER), Segment(high, last, Colour.NEITHER)),
                marks=(Mark(low, Colour.FASTER),),
                value=f"{low:.1f} / {high:.1f} / {last:.1f}",
                words=f"{row.category}, {row.label}: median {low:.1f}, 95th {high:.1f}, 99th percentile {last:.1f} ms.",
            )
        )
    legend = ((Colour.FASTER, "median to 95th percentile"), (Colour.NEITHER, "to the 99th"))
    return BarFigure(title, rows=tuple(bars), legend=legend)


def _latencies(pick: Callable[[Row], Percentiles | None]) -> tuple[Column[Row], ...]:
    def column(head: str, name: str) -> Column[Row]:
        return Column(head, lambda row: f"{1000 * getattr(pick(row), name):.1f}")

    return (*NAMES, column("Median", "p50"), column("95th percentile", "p95"), column("99th percentile", "p99"))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}".replace("%", " %")
