"""Sections on tuning, quality of weights, recorded text, missing data, and several runs side by side.

Example: two runs of one target have a bar each for every method that both measured.
"""

import shlex
from collections.abc import Sequence
from typing import Final

from outrider.quality.report import Line
from outrider.quality.table import sheet_of
from outrider.records.display import visible_line
from outrider.report.answer import fastest_of
from outrider.report.parts import Figure, Fragment, Section, table_of
from outrider.report.sources import Source
from outrider.results.best import OURS, Setting
from outrider.results.figures.bars import BarFigure, BarRow, Segment
from outrider.results.figures.canvas import HUES, Colour
from outrider.results.rows import SERVING, Row
from outrider.results.tables.cells import interval_text, number_text, rate_text
from outrider.results.tables.sheet import Column, Sheet
from outrider.traces.html import fragment, script_hash, style_hash
from outrider.tuning.outcome.table import sheets_of

__all__ = ["missing", "quality", "ribbon", "runs_side_by_side", "tuned"]

MOST_RUNS: Final = len(HUES)


def tuned(source: Source) -> Section | None:
    """Return what tuning chose and measured."""
    tune = source.tune
    if tune is None:
        return None
    title = f"Speedup of {tune.method} by requests at once"
    word = "predicted" if tune.is_prediction else "measured"
    bars = tuple(
        BarRow(
            f"{one.concurrency} at once",
            segments=(Segment(0, one.point, Colour.FASTER if one.point > 1 else Colour.SLOWER),),
            low=one.low,
            high=one.high,
            value=f"{one.point:.2f}x",
        )
        for one in tune.speedups
    )
    sheet = Sheet(
        title,
        [
            Column("Requests at once", lambda one: str(one.concurrency), kind="name"),
            Column(f"Speedup, {word}", lambda one: _interval(one.point, one.low, one.high)),
        ],
        tune.speedups,
    )
    drawn = BarFigure(title, rows=bars, line=1, line_name="plain decoding", least=1.25)
    figures = (Figure(drawn, table_of(sheet)),) if bars else ()
    says = [f"The speedups are {word}."]
    says += [f"Limited by {tune.limit}."] if tune.limit else []
    says += [f"Drafting pays up to {tune.crossover:.1f} requests at once."] if tune.crossover is not None else []
    tables = tuple(map(table_of, sheets_of(tune)))
    return Section("tuned", "The choice", says=tuple(says), figures=figures, tables=tables)


def ribbon(source: Source) -> Section | None:
    """Return real text of the run, each token marked by who wrote it; the fastest method comes first."""
    if source.bench is None or not source.traces:
        return None
    says = ("Answers of this run, step by step: a step's card shows its draft tree, probabilities and cost.",)
    fastest = fastest_of(source.bench)
    traces = sorted(source.traces, key=lambda trace: fastest is not None and trace.method != fastest.method)
    held = Fragment(html=fragment(traces), style_hash=style_hash(), script_hash=script_hash())
    return Section("ribbon", "Real text, token by token", says=says, fragment=held)


def quality(source: Source) -> Section | None:
    """Return what quantised weights cost in quality."""
    report = source.quality
    if report is None:
        return None
    sheet = sheet_of(report)
    title = f"Positions with another most probable token than {report.reference.weights}, %"
    bars = tuple(_disagreement(line) for line in report.lines)
    legend = ((HUES[0], "prompts"), (HUES[1], "the reference's own answers"))
    rows = tuple(row for pair in bars for row in pair)
    figure = Figure(BarFigure(title, rows=rows, legend=legend), table_of(sheet))
    says = ("Shorter is better: weights of fewer bits move the target's distribution, whatever drafts do.",)
    return Section("quality", "Quality of quantised weights", says=says, figures=(figure,))


def _disagreement(line: Line) -> tuple[BarRow, BarRow]:
    found = [100 * (1 - one.agreement) for one in (line.prompts, line.answers)]
    first, second = (
        BarRow(
            line.label if place == 0 else "",
            segments=(Segment(0, value, HUES[place]),),
            is_close=place > 0,
            value=f"{value:.1f} %",
            words=f"{line.label}, {('prompts', 'answers')[place]}: {value:.1f} %.",
        )
        for place, value in enumerate(found)
    )
    return first, second


def runs_side_by_side(sources: Sequence[Source]) -> Section | None:
    """Return the tokens per second of each method in every run that measured it at the first setting of the first."""
    runs = [source for source in sources if source.bench is not None][:MOST_RUNS]
    if len(runs) < 2:
        return None
    names = [f"{place}: {source.name}" for place, source in enumerate(runs, start=1)]
    found = [{(row.engine, row.label): row for row in _whole(source)} for source in runs]
    keys = [
        key for key in dict.fromkeys(key for rows in found for key in rows) if sum(key in rows for rows in found) > 1
    ]
    if not keys:
        return None
    title = "Tokens per second of each method, by run"
    bars = tuple(
        BarRow(
            names[place],
            group=f"{key[0]} {key[1]}",
            segments=(Segment(0, rows[key].tokens_per_s or 0.0, HUES[place]),),
            value=rate_text(rows[key]),
        )
        for key in keys
        for place, rows in enumerate(found)
        if key in rows
    )
    lines = [(names[place], rows[key]) for key in keys for place, rows in enumerate(found) if key in rows]
    figure = Figure(BarFigure(title, rows=bars), table_of(Sheet(title, SIDE, lines)))
    says = ("Each run is compared with plain decoding of its own; rates of different machines and days are not pairs.",)
    return Section("runs", "Runs side by side", says=says, figures=(figure,))


SIDE: Final[tuple[Column[tuple[str, Row]], ...]] = (
    Column("Run", lambda line: line[0], kind="name"),
    Column("Engine", lambda line: line[1].engine, kind="name"),
    Column("Method", lambda line: line[1].label, kind="name"),
    Column("Prompts", lambda line: line[1].category, kind="name"),
    Column("Tokens/s", lambda line: rate_text(line[1])),
    Column("Speedup", lambda line: interval_text(line[1].speedup)),
    Column("tau", lambda line: number_text(line[1].tau)),
)


def _whole(source: Source) -> list[Row]:
    """Return the rows of the first setting of a run, over all prompts."""
    rows = source.bench.rows if source.bench else ()
    members = [row for row in rows if row.engine in (OURS, *SERVING) and row.tokens_per_s is not None]
    members = [row for row in members if Setting.of(row)[1:] == Setting.of(members[0])[1:]]
    return [row for row in members if row.category == "all"] or members


def missing(source: Source, names: Sequence[str]) -> Section | None:
    """Return which command makes the data of sections that a benchmark's page lacks."""
    report = source.bench
    if report is None:
        return None
    target = shlex.quote(visible_line(report.target))
    commands = {
        "ribbon": ("Real text, token by token", f"outrider bench --target {target} --traces 1"),
        "batch": ("Speedup by batch size", f"outrider bench --target {target} --batches 1 4 16"),
        "waterfall": ("Cost of a step", f"outrider bench --target {target}"),
        "engines": ("Other engines beside ours", f"outrider bench --target {target} --preset engines"),
        "quality": ("Quality of quantised weights", f"outrider quality {target}"),
        "tuned": ("The best method and settings for your prompts", f"outrider tune {target}"),
    }
    lacking = [(title, command) for name, (title, command) in commands.items() if name not in names]
    if not lacking:
        return None
    says = ("These commands make the data that this page lacks; report their runs together with this one.",)
    return Section("missing", "Not in this run", says=says, items=tuple(f"{one}  # {title}" for title, one in lacking))


def _interval(point: float, low: float | None, high: float | None) -> str:
    return f"{point:.2f}" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")
