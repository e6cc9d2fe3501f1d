"""Speedup by batch size: the picture and the table of a run that was measured at several.

    python -m outrider.results.pages.chart report.json out.svg --over-batches [--temperature 0]

One line per method over the batch size, which doubles from tick to tick; the line at 1 is plain decoding. The band is
the 95 % interval, and a ring marks the crossover, where the line falls below 1 (`outrider.results.crossover`).

Example: with ticks 100 pixels apart, batch 4 is 200 pixels right of batch 1.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from outrider.errors import RunError
from outrider.results.crossover import Curve, curves_of
from outrider.results.pages.svg import element, escaped, label, picture, text_width, wrapped
from outrider.results.rows import PLAIN, Report
from outrider.results.tables.cells import number_text
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["batch_chart", "batch_table", "has_batches"]

WIDTH, HEIGHT, MARGIN, TOP, LEFT = 820, 420, 16, 84, 64
SMALL, NORMAL, LARGE = 11, 13, 18
INK = "#747b85"
HUES = ("#2f81c7", "#c9642a", "#3f9a55", "#9a5fc0", "#b5872b", "#2a9d9d", "#c2527c", "#6d7d3a")
DASHES = ("", "7 4", "2 3")
TICKS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Plane:
    """Batch and speedup to pixels: log2 across, linear from 0 upwards."""

    batches: tuple[int, ...]
    most: float
    right: float
    bottom: float = TOP + 270

    def x(self, batch: float) -> float:
        low, high = math.log2(self.batches[0]), math.log2(self.batches[-1])
        return LEFT + (math.log2(batch) - low) / (high - low) * (self.right - LEFT)

    def y(self, speedup: float) -> float:
        return self.bottom - speedup / self.most * (self.bottom - TOP)


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
    plane = _plane(curves)
    title = f"Speedup over plain decoding by batch size, temperature {curves[0].temperature:g}"
    body = [part for place, curve in enumerate(curves) for part in _curve(curve, plane, place)]
    notes = wrapped(_footnote(report, hardware), WIDTH - 2 * MARGIN, SMALL)
    feet = [label(MARGIN, plane.bottom + 58 + 16 * line, note, SMALL) for line, note in enumerate(notes)]
    parts = [*_head(title, curves), *_axes(plane), *body, *_names(curves, plane), *feet]
    return picture(parts, WIDTH, f"{plane.bottom + 52 + 16 * len(notes) + MARGIN:.0f}", INK)


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


def _plane(curves: Sequence[Curve]) -> Plane:
    batches = tuple(sorted({batch for curve in curves for batch in curve.batches}))
    most = 1.08 * max(1.2, *(high for curve in curves for high in curve.highs))
    room = max(text_width(curve.label, SMALL) for curve in curves) + 14
    return Plane(batches, most, max(LEFT + 200, WIDTH - MARGIN - room))


def _head(title: str, curves: Sequence[Curve]) -> Iterator[str]:
    yield element("title", escaped(title), id="title")
    yield element("desc", escaped(" ".join(_words(curve) for curve in curves)), id="desc")
    yield label(MARGIN, 30, title, LARGE, font_weight="600")
    said = "Lines: geometric mean. Bands: 95 % interval. Rings: where a method begins to lose."
    yield label(MARGIN, 52, said, NORMAL)


def _words(curve: Curve) -> str:
    values = ", ".join(f"{point:.2f} at {batch}" for batch, point in zip(curve.batches, curve.points, strict=True))
    return f"{curve.label}: {values}; begins to lose at batch {curve.words}."


def _axes(plane: Plane) -> Iterator[str]:
    step = next((tick for tick in TICKS if plane.most / tick <= 8), plane.most)
    for place in range(int(plane.most / step) + 1):
        y = plane.y(place * step)
        yield element("line", x1=LEFT, x2=plane.right, y1=y, y2=y, stroke=INK, stroke_opacity=0.25)
        yield label(LEFT - 8, y + 4, f"{place * step:g}", SMALL, text_anchor="end")
    for batch in plane.batches:
        yield label(plane.x(batch), plane.bottom + 18, str(batch), SMALL, text_anchor="middle")
    yield label((LEFT + plane.right) / 2, plane.bottom + 36, "batch size", SMALL, text_anchor="middle")
    one = plane.y(1)
    yield element("line", x1=LEFT, x2=plane.right, y1=one, y2=one, stroke=INK, stroke_width=1.5, **{"class": "plain"})


def _curve(curve: Curve, plane: Plane, place: int) -> Iterator[str]:
    hue, dash = HUES[place % len(HUES)], DASHES[place // len(HUES) % len(DASHES)]
    upper = _path(curve.batches, curve.highs, plane)
    lower = _path(curve.batches[::-1], curve.lows[::-1], plane)
    yield element("path", d=f"M{upper}L{lower}Z", fill=hue, fill_opacity=0.12, **{"class": "band"})
    yield element(
        "path",
        d=f"M{_path(curve.batches, curve.points, plane)}",
        fill="none",
        stroke=hue,
        stroke_width=2,
        stroke_dasharray=dash,
        data_method=curve.label,
        **{"class": "curve"},
    )
    if 0 < curve.crossover < math.inf:
        x = plane.x(curve.crossover)
        yield element("circle", cx=x, cy=plane.y(1), r=5, fill="none", stroke=hue, stroke_width=2, **{"class": "cross"})


def _path(batches: Sequence[int], values: Sequence[float], plane: Plane) -> str:
    return "L".join(f"{plane.x(batch):.2f} {plane.y(value):.2f}" for batch, value in zip(batches, values, strict=True))


def _names(curves: Sequence[Curve], plane: Plane) -> Iterator[str]:
    """Draw each method's name at the end of its line, moved down where two would overlap."""
    free = float(TOP)
    for place, curve in sorted(enumerate(curves), key=lambda pair: -pair[1].points[-1]):
        y = max(free, plane.y(curve.points[-1]) + 4)
        free = y + 14
        yield label(plane.right + 8, y, curve.label, SMALL, fill=HUES[place % len(HUES)])


def _footnote(report: Report, hardware: str | None) -> str:
    commit = f"; commit {report.commit[:10]}{' with local changes' if report.dirty else ''}" if report.commit else ""
    title = f"; {report.notes[0].rstrip('.')}" if report.notes else ""
    return f"{report.model}, on {hardware or report.device}{commit}{title}."
