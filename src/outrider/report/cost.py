"""Sections on cost: from ideal to measured speedup, the time of a step, predictions beside measurements, memory.

Each figure is of the first setting at which a method was compared, over all prompts; tables hold every cell. With free
drafts and a verification as cheap as a plain forward the speedup would be tau; each measured cost takes away from it.

Example: tau 2.40 becomes 2.03 by verifying more rows and 1.89 by drafting, and 1.80 was measured.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from outrider.report.answer import place_of
from outrider.report.parts import Figure, Section, table_of
from outrider.report.sources import Source
from outrider.results.best import OURS, Setting, interval_of
from outrider.results.figures.bars import BarFigure, BarRow, Mark, Segment
from outrider.results.figures.canvas import HUES, Colour
from outrider.results.rows import PLAIN, SERVING, Report, Row, Waterfall
from outrider.results.tables.cells import by_category, interval_text, number_text
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["drafted", "first_setting", "memory", "predicted", "step_time", "waterfall"]

PARTS: Final = ("propose", "verify", "accept", "commit", "host")
MOST_FALLS: Final = 4
"""Methods with a waterfall in the figure, the fastest first."""
STEPS: Final = ("verifying more rows", "drafting", "accepting, committing, host", "what is not explained")
SHARES: Final = dict(zip(PARTS, HUES, strict=False))


def first_setting(report: Report) -> list[Row]:
    """Return the rows of methods at the first setting with one, over all prompts where that was summed up."""
    rows = [row for row in report.rows if row.engine in (OURS, *SERVING) and row.method != PLAIN]
    members = [row for row in rows if Setting.of(row) == Setting.of(rows[0])]
    return [row for row in members if row.category == "all"] or members


def drafted(report: Report) -> list[Row]:
    """Return every row of a method, by category."""
    return by_category([row for row in report.rows if row.engine in (OURS, *SERVING) and row.method != PLAIN])


def waterfall(source: Source) -> Section | None:
    """Return what takes the ideal speedup down to the measured one."""
    if source.bench is None:
        return None
    every = [row for row in drafted(source.bench) if row.waterfall is not None]
    if not every:
        return None
    rows = [row for row in first_setting(source.bench) if row.waterfall is not None]
    shown = sorted(rows, key=lambda row: -(row.waterfall.measured or 0.0) if row.waterfall else 0.0)[:MOST_FALLS]
    title = f"From ideal to measured speedup, {place_of(Setting.of(every[0]))}"
    bars = tuple(bar for row in shown if row.waterfall for bar in _falls(row.label, row.waterfall))
    legend = ((Colour.FASTER, "speedup"), (Colour.SLOWER, "taken away"), (Colour.HUE_3, "gained"))
    drawn = BarFigure(title, rows=bars, legend=legend, line=1, line_name="plain decoding")
    says = (
        "The ideal is tau, the tokens per target forward: the speedup if drafts were free and a verification cost as "
        "much as a plain forward. Each measured cost takes away from it.",
    )
    figures = (Figure(drawn, table_of(Sheet(title, FALLS, every))),) if bars else ()
    return Section("waterfall", "From ideal to measured", says=says, figures=figures)


def _falls(name: str, falls: Waterfall) -> list[BarRow]:
    """Return five or six bars: the ideal, what each cost takes away, and what was measured."""
    levels = [falls.ideal, falls.with_verify, falls.with_draft, falls.with_host]
    levels += [] if falls.measured is None else [falls.measured]
    rows = [BarRow("ideal: tau", group=name, segments=(Segment(0, falls.ideal, Colour.FASTER),), value=_x(falls.ideal))]
    for step, (before, after) in zip(STEPS, pairwise(levels), strict=False):
        colour = Colour.SLOWER if after <= before else Colour.HUE_3
        rows.append(
            BarRow(step, group=name, segments=(Segment(before, after, colour),), value=f"{after - before:+.2f}")
        )
    if falls.measured is not None:
        measured = (Segment(0, falls.measured, Colour.FASTER),)
        rows.append(BarRow("measured", group=name, segments=measured, value=_x(falls.measured)))
    return rows


def _x(value: float) -> str:
    return f"{value:.2f}x"


NAMES: Final[tuple[Column[Row], ...]] = (
    Column("Method", lambda row: row.label, kind="name"),
    Column("Prompts", lambda row: row.category, kind="name"),
    Column("Setting", lambda row: place_of(Setting.of(row)), kind="text"),
)


def _fall(head: str, name: str) -> Column[Row]:
    return Column(head, lambda row: number_text(getattr(row.waterfall, name)))


FALLS: Final[tuple[Column[Row], ...]] = (
    *NAMES,
    _fall("Ideal", "ideal"),
    _fall("With verifying", "with_verify"),
    _fall("With drafting", "with_draft"),
    _fall("With host time", "with_host"),
    _fall("Measured", "measured"),
)


def step_time(source: Source) -> Section | None:
    """Return the shares of a step's time."""
    if source.bench is None:
        return None
    every = [row for row in by_category(source.bench.rows) if row.shares]
    if not any(row.method != PLAIN for row in every):
        return None
    shown = [row for row in first_setting(source.bench) if row.shares]
    title = f"Shares of a step's time, {place_of(Setting.of(shown[0] if shown else every[0]))}"
    bars = tuple(_shares(row.label, row.category, row.shares or {}) for row in shown)
    legend = tuple((SHARES[part], part) for part in PARTS)
    figure = Figure(BarFigure(title, rows=bars, legend=legend, unit=" %"), table_of(Sheet(title, TIMES, every)))
    says = ("Propose is drafting, verify the target's forward; accept, commit and host are the rest of a step.",)
    return Section("time", "Where each step's time goes", says=says, figures=(figure,))


def _shares(name: str, category: str, shares: Mapping[str, float]) -> BarRow:
    segments, start = [], 0.0
    for part in PARTS:
        share = 100 * shares.get(part, 0.0)
        segments.append(Segment(start, start + share, SHARES[part]))
        start += share
    said = ", ".join(f"{part} {100 * shares.get(part, 0.0):.0f} %" for part in PARTS)
    group = "" if category == "all" else category
    return BarRow(name, group=group, segments=tuple(segments), words=f"{name}, {category}: {said}.")


def _share(part: str) -> Column[Row]:
    return Column(part, lambda row: "-" if row.shares is None else f"{100 * row.shares.get(part, 0.0):.1f} %")


TIMES: Final[tuple[Column[Row], ...]] = (*NAMES, *map(_share, PARTS))


def predicted(source: Source) -> Section | None:
    """Return predictions beside measurements: of a benchmark from tau and costs, of tuning from replays and prices."""
    if source.tune is not None:
        return _tuned(source)
    if source.bench is None:
        return None
    every = [row for row in drafted(source.bench) if row.predicted_speedup is not None and row.speedup is not None]
    if not every:
        return None
    shown = [row for row in first_setting(source.bench) if row in every]
    title = f"Predicted and measured speedup, {place_of(Setting.of(every[0]))}"
    bars = tuple(
        _pair(
            row.label,
            "" if row.category == "all" else row.category,
            row.predicted_speedup or 0.0,
            interval_of(row).point,
            (interval_of(row).low, interval_of(row).high),
        )
        for row in shown
    )
    errors = sorted(abs((row.predicted_speedup or 0.0) / interval_of(row).point - 1) for row in every)
    says = (
        "The prediction is tau over the cost of a step in plain steps, both from this run's own records. Of "
        f"{len(every)} cells it is off by {_percent(errors[len(errors) // 2])} at the median and by "
        f"{_percent(errors[-1])} at most.",
    )
    figures = (_figure(title, bars, Sheet(title, CHECKS, every)),) if bars else ()
    return Section("predicted", "Predicted and measured", says=says, figures=figures)


CHECKS: Final[tuple[Column[Row], ...]] = (
    *NAMES,
    Column("Predicted", lambda row: number_text(row.predicted_speedup)),
    Column("Measured", lambda row: interval_text(row.speedup)),
    Column("Off by", lambda row: _off(row.predicted_speedup or 0.0, interval_of(row).point)),
)


def _tuned(source: Source) -> Section | None:
    tune = source.tune
    if tune is None or not tune.checks:
        return None
    title = "Predicted and measured speedup"
    bars = tuple(
        _pair(
            f"{one.method}, budget {one.budget}", _requests(one.concurrency), one.predicted, one.measured, (None, None)
        )
        for one in sorted(tune.checks, key=lambda one: one.concurrency)
    )
    sheet = Sheet(
        title,
        [
            Column("Method", lambda one: one.method, kind="name"),
            Column("Budget", lambda one: one.budget, kind="name"),
            Column("Requests at once", lambda one: str(one.concurrency)),
            Column("Predicted", lambda one: f"{one.predicted:.2f}"),
            Column("Measured", lambda one: f"{one.measured:.2f}"),
            Column("Off by", lambda one: _off(one.predicted, one.measured)),
        ],
        tune.checks,
    )
    error = "" if tune.median_error is None else f" The median error of fixed budgets is {_percent(tune.median_error)}."
    says = (f"Predictions come from replays and measured costs, before anything was timed.{error}",)
    return Section("predicted", "Predicted and measured", says=says, figures=(_figure(title, bars, sheet),))


def _requests(number: int) -> str:
    return f"{number} request{'s at once' if number > 1 else ''}"


def _pair(name: str, group: str, guess: float, measured: float, ends: tuple[float | None, float | None]) -> BarRow:
    low, high = ends
    value = f"{guess:.2f} / {measured:.2f}"
    words = f"{', '.join(filter(None, (group, name)))}: predicted {guess:.2f}, measured {measured:.2f}."
    marks = (Mark(guess, Colour.HUE_2, is_hollow=True), Mark(measured, Colour.HUE_1))
    return BarRow(name, group=group, marks=marks, low=low, high=high, value=value, words=words)


def _figure(title: str, bars: tuple[BarRow, ...], sheet: Sheet[Any]) -> Figure:
    legend = ((Colour.HUE_2, "predicted (ring)"), (Colour.HUE_1, "measured (disc), with its interval"))
    drawn = BarFigure(title, rows=bars, legend=legend, line=1, line_name="plain decoding", least=1.25)
    return Figure(drawn, table_of(sheet))


def memory(source: Source) -> Section | None:
    """Return what each method held in memory: the largest figures of its rows."""
    if source.bench is None:
        return None
    sizes: dict[str, dict[str, int]] = {}
    for row in drafted(source.bench):
        largest = sizes.setdefault(row.label, {})
        largest |= {name: max(size, largest.get(name, 0)) for name, size in (row.memory_bytes or {}).items()}
    known = [(method, size) for method, size in sizes.items() if "proposer_weights" in size]
    if not known:
        return None
    title = "Memory of each method, MB"
    kinds = (("proposer_weights", "weights", HUES[0]), ("proposer_cache", "most held by its session", HUES[1]))
    bars = tuple(
        BarRow(method, segments=_stacked([(size.get(key, 0) / 1e6, hue) for key, _, hue in kinds]), value=_total(size))
        for method, size in known
    )
    columns: list[Column[tuple[str, dict[str, int]]]] = [
        Column("Method", lambda line: line[0], kind="name"),
        *(_bytes(name, key) for key, name, _ in kinds),
        Column("Bytes a token of text", lambda line: str(line[1].get("proposer_cache_per_token", "-"))),
        Column("Target's cache, bytes a token", lambda line: str(line[1].get("target_cache_per_token", "-"))),
    ]
    drawn = BarFigure(title, rows=bars, legend=tuple((hue, name) for _, name, hue in kinds))
    says = ("What a method needs beside the target: its own weights, and what its session held at most.",)
    figure = Figure(drawn, table_of(Sheet(title, columns, known)))
    return Section("memory", "Memory", says=says, figures=(figure,))


def _bytes(name: str, key: str) -> Column[tuple[str, dict[str, int]]]:
    return Column(f"{name[0].upper()}{name[1:]}, MB", lambda line: f"{line[1].get(key, 0) / 1e6:.2f}")


def _total(size: Mapping[str, int]) -> str:
    return f"{(size.get('proposer_weights', 0) + size.get('proposer_cache', 0)) / 1e6:.1f} MB"


def _stacked(sizes: Sequence[tuple[float, Colour]]) -> tuple[Segment, ...]:
    segments, start = [], 0.0
    for size, hue in sizes:
        segments.append(Segment(start, start + size, hue))
        start += size
    return tuple(segments)


def _off(guess: float, measured: float) -> str:
    return f"{guess / measured - 1:+.1%}".replace("%", " %")


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
