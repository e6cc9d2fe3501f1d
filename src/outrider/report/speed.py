"""Sections on speed: speedup by method and category, the cells that lose, engines side by side.

Example: a run of one setting has one figure, of all prompts, and a table of categories by methods.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from outrider.report.answer import place_of
from outrider.report.parts import Cell, Figure, Head, Section, Table, table_of
from outrider.report.sources import Source
from outrider.results.best import OURS, Setting, is_faster, is_slower, settings_of
from outrider.results.figures.bars import BarFigure, BarRow, Segment
from outrider.results.figures.canvas import Colour
from outrider.results.pages.chart import speedup_figure
from outrider.results.rows import PLAIN, SERVING, Report, Row
from outrider.results.tables.cells import by_category, interval_text, number_text, rate_text
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["losing", "side_by_side", "speed"]

MOST_BARS: Final = 24
MOST_LOST: Final = 12
MOST_FIGURES: Final = 6
"""A figure takes a screen; the table has every setting."""


def speed(source: Source) -> Section | None:
    """Return speedups with intervals, by method and category, at each setting."""
    report = source.bench
    if report is None:
        return None
    settings = [setting for setting in settings_of(report.rows) if _measured(report, setting)]
    if not settings:
        return None
    figures = tuple(_figure(report, setting) for setting in settings[:MOST_FIGURES])
    tables = tuple(_by_category(report, setting, is_folded=place > 0) for place, setting in enumerate(settings))
    says = (
        "A bar is the geometric mean over prompts of the time of plain decoding over the time of the method, for the "
        "same prompts side by side in this run. The whisker is its 95 % interval: the method is faster only where all "
        "of it lies above 1, and slower where all of it lies below.",
    )
    return Section("speed", "Speedup", says=says, figures=figures, tables=tables)


def losing(source: Source) -> Section | None:
    """Return the cells that are slower than plain decoding, the worst first."""
    report = source.bench
    if report is None:
        return None
    rows = [row for row in report.rows if row.engine in (OURS, *SERVING) and row.method != PLAIN and row.speedup]
    lost = sorted((row for row in rows if row.speedup and row.speedup.point < 1), key=lambda row: _point(row))
    sure = sum(map(is_slower, lost))
    if not rows:
        return None
    if not lost:
        return Section("losing", "Losing cells", says=("No cell of this run is slower than plain decoding.",))
    says = (
        f"{len(lost)} of {len(rows)} cells are slower than plain decoding, {sure} of them by more than chance. "
        "The share of steps with a draft and the tau it would have taken say why.",
    )
    tables = [table_of(Sheet("The slowest first", LOST, lost[:MOST_LOST]))]
    if len(lost) > MOST_LOST:
        rest = table_of(Sheet(f"The other {len(lost) - MOST_LOST}", LOST, lost[MOST_LOST:]))
        tables.append(replace(rest, is_folded=True))
    return Section("losing", "Losing cells", says=says, tables=tuple(tables))


LOST: Final[tuple[Column[Row], ...]] = (
    Column("Method", lambda row: row.label, kind="name"),
    Column("Prompts", lambda row: row.category, kind="name"),
    Column("Setting", lambda row: place_of(Setting.of(row)), kind="text"),
    Column("Speedup", lambda row: interval_text(row.speedup)),
    Column("tau", lambda row: number_text(row.tau), legend="tau: tokens per target forward"),
    Column("Break-even tau", lambda row: number_text(row.break_even_tau), legend="below the break-even tau it loses"),
    Column("Steps with a draft", lambda row: _percent(row.draft_coverage)),
)


def side_by_side(source: Source) -> Section | None:
    """Return tokens per second of every engine at settings that several engines ran."""
    report = source.bench
    if report is None or len({row.engine for row in report.rows}) < 2:
        return None
    figures = []
    for batch, temperature in dict.fromkeys((row.batch, row.temperature) for row in report.rows):
        rows = [row for row in report.rows if (row.batch, row.temperature) == (batch, temperature)]
        shared = _common_category(rows)
        members = [row for row in rows if row.category == shared and row.tokens_per_s is not None]
        if len({row.engine for row in members}) > 1:
            figures.append(_rates(members, f"batch {batch}, temperature {temperature:g}, {shared}"))
    says = ("Decoded tokens per second of all requests together, each engine with its own plain decoding.",)
    return Section("engines", "Engines side by side", says=says, figures=tuple(figures)) if figures else None


def _measured(report: Report, setting: Setting) -> list[Row]:
    return [row for row in report.rows if Setting.of(row) == setting and row.method != PLAIN and row.speedup]


def _figure(report: Report, setting: Setting) -> Figure:
    rows = by_category(_measured(report, setting))
    totals = [row for row in rows if row.category == "all"]
    shown = totals if totals and len(rows) > MOST_BARS else rows
    title = f"Speedup over plain decoding, {place_of(setting)}"
    return Figure(speedup_figure(title, shown), table_of(Sheet(title, NUMBERS, rows)))


NUMBERS: Final[tuple[Column[Row], ...]] = (
    Column("Method", lambda row: row.label, kind="name"),
    Column("Prompts", lambda row: row.category, kind="name"),
    Column("Speedup", lambda row: interval_text(row.speedup)),
    Column("End to end", lambda row: interval_text(row.speedup_end_to_end), legend="end to end: prompts included"),
    Column("Tokens/s", rate_text),
    Column("tau", lambda row: number_text(row.tau), legend="tau: tokens per target forward"),
    Column("Number of prompts", lambda row: str(row.num_prompts)),
    Column("Text", lambda row: row.lossless.verdict, kind="text"),
)


def _by_category(report: Report, setting: Setting, *, is_folded: bool) -> Table:
    rows = by_category([row for row in report.rows if Setting.of(row) == setting])
    methods = list(dict.fromkeys(row.label for row in rows if row.method != PLAIN))
    found = {(row.category, row.label): row for row in rows}
    lines = []
    for category in dict.fromkeys(row.category for row in rows):
        plain = found.get((category, PLAIN))
        cells = [_cell(found.get((category, method))) for method in methods]
        lines.append((Cell(category), Cell("-" if plain is None else rate_text(plain)), *cells))
    heads = (Head("Prompts", False), Head("plain, tokens/s"), *(Head(method) for method in methods))
    legend = "▲ faster and ▼ slower than plain decoding, by more than chance"
    return Table(f"Speedup by kind of prompt, {place_of(setting)}", heads, tuple(lines), legend, is_folded)


def _cell(row: Row | None) -> Cell:
    if row is None or row.speedup is None:
        return Cell("-")
    text = interval_text(row.speedup)
    if row.speedup.low is None:  # of one prompt alone nothing is known beyond chance
        return Cell(text)
    if is_faster(row):
        return Cell(f"▲ {text}", "faster")
    return Cell(f"▼ {text}", "slower") if is_slower(row) else Cell(text)


def _common_category(rows: Sequence[Row]) -> str:
    """Return the category that most engines have, "all" before others."""
    engines = {row.category: len({one.engine for one in rows if one.category == row.category}) for row in rows}
    return max(engines, key=lambda category: (engines[category], category == "all"))


def _rates(rows: Sequence[Row], place: str) -> Figure:
    title = f"Tokens per second, {place}"
    bars = tuple(
        BarRow(
            row.label,
            group=row.engine,
            segments=(Segment(0, row.tokens_per_s or 0.0, Colour.NEITHER if row.method == PLAIN else Colour.FASTER),),
            value=rate_text(row),
        )
        for row in sorted(rows, key=lambda row: row.engine != OURS)
    )
    legend = ((Colour.NEITHER, "plain decoding"), (Colour.FASTER, "with drafts"))
    columns = (Column[Row]("Engine", lambda row: row.engine, kind="name"), *NUMBERS)
    return Figure(BarFigure(title, rows=bars, legend=legend), table_of(Sheet(title, columns, rows)))


def _point(row: Row) -> float:
    return row.speedup.point if row.speedup else 1.0


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}".replace("%", " %")
