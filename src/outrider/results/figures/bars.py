"""Horizontal bars: one row per cell, in groups, with intervals, marks and a line to compare with.

A row holds segments from `start` to `end`, so the same figure shows a speedup (one segment from 0), a waterfall (each
segment begins where the last one ended), shares (segments that fill the width) and ranges of percentiles. On a narrow
sheet a row's name stands above its bar.

Example: on a sheet 820 pixels wide, `BarFigure("Speedup", rows=(BarRow("eagle3", segments=(Segment(0, 1.4,
Colour.FASTER),), value="1.40"),), line=1).svg(820)`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, NamedTuple

from outrider.results.figures.canvas import (
    LARGE,
    NORMAL,
    SMALL,
    Box,
    Colour,
    Sheet,
    drawing,
    elided,
    sheet,
    svg_of,
    text_width,
    wrapped,
)

__all__ = ["NARROW", "WIDE", "BarFigure", "BarRow", "Mark", "Segment"]

WIDE, NARROW = 820, 360
"""Widths of sheets in pixels: below the middle of both, names stand above their bars."""
MARGIN, BAR, GROUP, NAME = 16, 14, 26, 18
LONGEST_NAME: Final = 260


@dataclass(frozen=True)
class Segment:
    """A piece of a bar."""

    start: float
    end: float
    colour: Colour


@dataclass(frozen=True)
class Mark:
    """A point on a row: a disc, or a ring where it is hollow."""

    at: float
    colour: Colour
    is_hollow: bool = False


@dataclass(frozen=True)
class BarRow:
    """One row.

    low, high   ends of the interval, in the colour of the last segment or mark
    value       text at the right
    is_close    it stands close to the row before, without a name of its own
    words       the row in a sentence; by default its group, name and value
    """

    name: str
    _: KW_ONLY
    group: str = ""
    segments: tuple[Segment, ...] = ()
    marks: tuple[Mark, ...] = ()
    low: float | None = None
    high: float | None = None
    value: str = ""
    is_close: bool = False
    words: str = ""

    @property
    def said(self) -> str:
        """The row in a sentence."""
        return self.words or f"{', '.join(filter(None, (self.group, self.name)))}: {self.value}."

    @property
    def most(self) -> float:
        """The largest number that is drawn."""
        ends = [segment.end for segment in self.segments] + [segment.start for segment in self.segments]
        return max([*ends, *(mark.at for mark in self.marks), self.high or 0.0])

    @property
    def colour(self) -> Colour:
        """The colour of its interval."""
        return self.marks[-1].colour if self.marks else self.segments[-1].colour if self.segments else Colour.NEITHER


@dataclass(frozen=True)
class BarFigure:
    """All rows of a figure.

    subtitle, footnote   lines above and below, in a file only: a page has its own
    legend               meaning of each colour
    line, line_name      a number to compare with, and its name
    unit                 text behind the numbers of the axis
    least                the axis reaches at least this far
    """

    title: str
    _: KW_ONLY
    rows: tuple[BarRow, ...]
    subtitle: str = ""
    legend: tuple[tuple[Colour, str], ...] = ()
    line: float | None = None
    line_name: str = ""
    unit: str = ""
    least: float = 0.0
    footnote: str = ""

    @property
    def words(self) -> str:
        """All rows in sentences."""
        return " ".join(row.said for row in self.rows)

    def svg(self, width: float = WIDE, prefix: str | None = None) -> str:
        """Return the drawing; `prefix` as for `svg_of`."""
        with drawing():
            return svg_of(self._drawn(width, is_file=prefix is None), self.title, self.words, prefix)

    def _drawn(self, width: float, *, is_file: bool) -> Sheet:
        legend = _legend_places(self.legend, width)
        top = (
            (_head(self.subtitle) if is_file else 8.0)
            + (20 * (1 + legend[-1].line) if legend else 0)
            + (20 if self.line_name else 4)
        )
        places, bottom = self._places(width)
        notes = wrapped(self.footnote, width - 2 * MARGIN) if is_file and self.footnote else []
        names = max((text_width(row.name, NORMAL) for row in self.rows), default=0.0)
        left = MARGIN + (min(names, LONGEST_NAME) + 12 if _is_wide(width) else 0)
        values = max((text_width(row.value, SMALL) for row in self.rows), default=0.0)
        plot = Box(left, top, width - MARGIN - (values + 10 if values else 0), top + bottom)
        page = sheet(width, top + bottom + 30 + 16 * len(notes) + (8 if notes else 0), plot)
        self._axes(page, bottom)
        for row, y in places:
            _draw_row(page, row, y, plot)
        for group, y in self._groups(width):
            page.write(MARGIN, top + y, elided(group, width - 2 * MARGIN, NORMAL), NORMAL, fontweight="bold")
        if is_file:
            page.write(MARGIN, 30, self.title, LARGE, fontweight="bold")
            page.write(MARGIN, 52, self.subtitle, NORMAL)
        for entry in legend:
            _draw_key(page, entry, 2 + _head(self.subtitle) if is_file else 10.0)
        for line, note in enumerate(notes):
            page.write(MARGIN, top + bottom + 42 + 16 * line, note, colour=Colour.MUTED)
        return page

    def _axes(self, page: Sheet, bottom: float) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = page.axes
        axes.set_ylim(bottom, 0)
        axes.set_xlim(0, max([self.least, *(row.most for row in self.rows)]) or 1.0)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if page.width > NARROW else 4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{self.unit}"))
        axes.grid(axis="x", color=Colour.MUTED.value, alpha=0.25, linewidth=1)
        if self.line is not None:
            self._line(page, self.line, bottom)
            if self.line_name:
                axes.annotate(
                    self.line_name,
                    (self.line, 0),
                    (0, 5),
                    textcoords="offset pixels",
                    ha="center",
                    va="baseline",
                    fontsize=SMALL,
                    color=Colour.INK.value,
                )

    def _line(self, page: Sheet, at: float, bottom: float) -> None:
        """Draw the line to compare with; on a narrow sheet not through the names above the bars."""
        style: dict[str, Any] = {"color": Colour.INK.value, "linewidth": 1.5, "clip_on": False, "gid": "line"}
        if _is_wide(page.width):
            page.axes.plot([at, at], [0, bottom], **style)
        for _, y in [] if _is_wide(page.width) else self._places(page.width)[0]:
            page.axes.plot([at, at], [y - BAR / 2 - 2, y + BAR / 2 + 2], **style)

    def _places(self, width: float) -> tuple[list[tuple[BarRow, float]], float]:
        """Return the rows with the middle of their bars, and the height of all."""
        places, y, group = [], 0.0, ""
        for row in self.rows:
            y += GROUP if row.group != group else 0
            group = row.group
            y = max(0.0, y - 8) if row.is_close else y + (0 if _is_wide(width) else NAME)
            places.append((row, y + BAR / 2 + 2))
            y += BAR + 9
        return places, y + 4

    def _groups(self, width: float) -> Iterator[tuple[str, float]]:
        """Yield each group's name and the baseline of its heading."""
        group = ""
        for row, middle in self._places(width)[0]:
            if row.group != group:
                yield row.group, middle - BAR / 2 - (11 if _is_wide(width) else 11 + NAME)
            group = row.group


def _head(subtitle: str) -> float:
    """Return the height that a file's title and subtitle take."""
    return 64.0 if subtitle else 44.0


def _is_wide(width: float) -> bool:
    return width > (WIDE + NARROW) / 2


def _draw_row(page: Sheet, row: BarRow, y: float, plot: Box) -> None:
    axes, middle = page.axes, plot.top + y + 4.5
    if row.name and _is_wide(page.width):
        page.write(plot.left - 8, middle, elided(row.name, plot.left - MARGIN - 12, NORMAL), NORMAL, ha="right")
    elif row.name:
        page.write(plot.left, middle - BAR - 2, elided(row.name, page.width - 2 * MARGIN, NORMAL), NORMAL)
    for segment in row.segments:
        low, high = sorted((segment.start, segment.end))
        axes.barh(y, high - low, BAR, low, color=segment.colour.value, alpha=0.55, clip_on=False, gid="bar")
    if row.low is not None and row.high is not None:
        style: dict[str, Any] = {"color": row.colour.value, "clip_on": False, "gid": "whisker"}
        axes.plot([row.low, row.high], [y, y], "|-", linewidth=2, markersize=8, markeredgewidth=2, **style)
    for mark in row.marks:
        fill = "none" if mark.is_hollow else mark.colour.value
        axes.plot(
            mark.at, y, "o", markersize=8, mec=mark.colour.value, mfc=fill, markeredgewidth=2, clip_on=False, gid="mark"
        )
    if row.value:
        page.write(plot.right + 10, middle, row.value)


class _Key(NamedTuple):
    colour: Colour
    meaning: str
    x: float
    line: int


def _legend_places(legend: Sequence[tuple[Colour, str]], width: float) -> list[_Key]:
    places, x, line = [], float(MARGIN), 0
    for colour, meaning in legend:
        space = 30 + text_width(meaning)
        if x > MARGIN and x + space > width:
            x, line = float(MARGIN), line + 1
        places.append(_Key(colour, meaning, x, line))
        x += space
    return places


def _draw_key(page: Sheet, key: _Key, top: float) -> None:
    from matplotlib.patches import Rectangle

    y = top + 20 * key.line
    corner = (key.x / page.width, 1 - (y + 11) / page.height)
    size = (11 / page.width, 11 / page.height)
    page.figure.add_artist(
        Rectangle(corner, *size, transform=page.figure.transFigure, color=key.colour.value, alpha=0.8)
    )
    page.write(key.x + 17, y + 10, key.meaning)
