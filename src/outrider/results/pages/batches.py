"""Speedup by batch size: the picture and the table of a run that was measured at several.

    python -m outrider.results.pages.chart report.json out.svg --over-batches [--temperature 0]

One line per method over the batch size, which doubles from tick to tick; the line at 1 is plain decoding. The band is
the 95 % interval, and a ring marks the crossover, where the line falls below 1 (`outrider.results.crossover`).

Example: at batches 1, 2 and 4 the ticks are equally far apart.
"""

import math
from collections.abc import Sequence
from functools import partial

from outrider.errors import RunError
from outrider.results.crossover import Curve, curves_of
from outrider.results.figures.lines import Curve as DrawnCurve
from outrider.results.figures.lines import LineFigure
from outrider.results.rows import PLAIN, Report
from outrider.results.tables.cells import number_text
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["batch_chart", "batch_figure", "batch_table", "has_batches"]


def has_batches(report: Report) -> bool:
    """Return whether there is a method to draw: one measured at three batch sizes or more."""
    return any(len(curve.rows) > 2 for curve in _drawn(report, None))


def batch_chart(report: Report, *, temperature: float | None = None, hardware: str | None = None) -> str:
    """Return the SVG of one temperature, by default the first.

    Raises:
        RunError: if no method was measured at several batch sizes.
    """
    curves = _drawn(report, temperature)
    if not curves:
        raise RunError(f"the report has no method at several batch sizes, temperature={temperature}; give --batches")
    return batch_figure(curves, _footnote(report, hardware)).svg()


def batch_figure(curves: Sequence[Curve], footnote: str = "", *, has_bands: bool = True) -> LineFigure:
    """Return the figure of methods at one temperature; bands of many lines hide one another."""
    return LineFigure(
        f"Speedup over plain decoding by batch size, temperature {curves[0].temperature:g}",
        curves=tuple(_drawn_curve(curve, has_bands) for curve in curves),
        x_name="batch size",
        is_log=True,
        most=1.1,
        line=1,
        subtitle="The line at 1 is plain decoding. Bands: 95 % interval. A ring: from there on the method loses.",
        footnote=footnote,
    )


def _drawn_curve(curve: Curve, has_bands: bool) -> DrawnCurve:
    crosses = 0 < curve.crossover < math.inf
    return DrawnCurve(
        curve.label,
        tuple(map(float, curve.batches)),
        tuple(curve.points),
        lows=tuple(curve.lows) if has_bands else (),
        highs=tuple(curve.highs) if has_bands else (),
        rings=((curve.crossover, 1.0),) if crosses else (),
        words=_words(curve),
    )


def batch_table(report: Report) -> str:
    """Return for each method, in Markdown, its crossover, and by batch its speedup, its rates and its TTFT."""
    curves = curves_of(report)
    if not curves:
        return "This run has one batch size."
    columns: list[Column[Curve]] = [
        Column("Method", lambda curve: curve.label, kind="code"),
        Column("T", lambda curve: f"{curve.temperature:g}", kind="raw"),
        Column("loses from batch", lambda curve: "-" if curve.rows[0].method == PLAIN else curve.words, kind="raw"),
    ]
    for batch in sorted({batch for curve in curves for batch in curve.batches}):
        columns.append(Column(f"batch {batch}", partial(_cell, batch), kind="raw"))
    return f"{Sheet('', columns, curves).markdown}\n\n{LEGEND}"


LEGEND = (
    "A cell: speedup over plain decoding in the same run; tokens per second of all requests together / of one request; "
    "median time to the first token in seconds, waiting for a slot included."
)


def _cell(batch: int, curve: Curve) -> str:
    row = next((row for row in curve.rows if row.batch == batch), None)
    if row is None:
        return "-"
    speedup = "1" if row.method == PLAIN or row.speedup is None else f"{row.speedup.point:.2f}"
    rates = " / ".join(number_text(rate, ".0f") for rate in (row.tokens_per_s, row.tokens_per_s_per_request))
    return f"{speedup}; {rates}; {'-' if row.ttft_s is None else f'{row.ttft_s.p50:.2f}'}"


def _drawn(report: Report, temperature: float | None) -> list[Curve]:
    curves = [curve for curve in curves_of(report) if curve.rows[0].method != PLAIN]
    wanted = [curve for curve in curves if temperature in (None, curve.temperature)]
    return [curve for curve in wanted if curve.temperature == wanted[0].temperature]


def _words(curve: Curve) -> str:
    values = ", ".join(f"{point:.2f} at {batch}" for batch, point in zip(curve.batches, curve.points, strict=True))
    return f"{curve.label}: {values}; begins to lose at batch {curve.words}."


def _footnote(report: Report, hardware: str | None) -> str:
    commit = f"; commit {report.commit[:10]}{' with local changes' if report.dirty else ''}" if report.commit else ""
    title = f"; {report.notes[0].rstrip('.')}" if report.notes else ""
    return f"{report.model}, on {hardware or report.device}{commit}{title}."
