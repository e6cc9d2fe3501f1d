"""Lines over a number, with bands and a line to compare with: speedup by batch size, tau by training, acceptance.

Names stand at the ends of the lines, moved down where two would overlap; on a narrow sheet they stand in a legend.
Colours repeat with other dashes, so that a line is known without its colour.

Example: `LineFigure("Speedup", curves=(Curve("eagle3", (1, 2, 4), (1.5, 1.3, 0.9)),), x_name="batch size", is_log=True,
line=1).svg(820)`.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from outrider.results.figures.bars import MARGIN, NARROW, WIDE
from outrider.results.figures.canvas import (
    HUES,
    LARGE,
    NORMAL,
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

__all__ = ["Curve", "LineFigure"]

HEIGHT, LEFT = 270, 56
DASHES: Final = ("solid", (0, (6, 3)), (0, (2, 2)))
LONGEST_NAME: Final = 220


@dataclass(frozen=True)
class Curve:
    """One line.

    lows, highs   ends of a band around it, or nothing
    rings         points to mark, such as a crossover
    words         the line in a sentence
    """

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    _: KW_ONLY
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    rings: tuple[tuple[float, float], ...] = ()
    words: str = ""


@dataclass(frozen=True)
class LineFigure:
    """All lines of a figure.

    subtitle, footnote   lines above and below, in a file only: a page has its own
    x_name               the axis below, with its unit
    is_log               x doubles from tick to tick
    is_origin            x begins at 0, and its ticks are round numbers; otherwise every x of a curve has a tick
    least, most          range of y: `least` is where it begins, and it reaches at least `most`
    line                 a number to compare with
    """

    title: str
    _: KW_ONLY
    curves: tuple[Curve, ...]
    x_name: str
    is_log: bool = False
    is_origin: bool = False
    least: float = 0.0
    most: float = 0.0
    line: float | None = None
    subtitle: str = ""
    footnote: str = ""

    @property
    def words(self) -> str:
        """All lines in sentences."""
        return " ".join(curve.words or _said(curve) for curve in self.curves)

    def svg(self, width: float = WIDE, prefix: str | None = None) -> str:
        """Return the drawing; `prefix` as for `svg_of`."""
        with drawing():
            return svg_of(self._drawn(width, is_file=prefix is None), self.title, self.words, prefix)

    def _drawn(self, width: float, *, is_file: bool) -> Sheet:
        is_wide = width > (WIDE + NARROW) / 2
        names = min(LONGEST_NAME, max(text_width(curve.name) for curve in self.curves)) if is_wide else 0
        top = 76.0 if is_file else 14.0
        legend = 0 if is_wide else 18 * len(self.curves)
        notes = wrapped(self.footnote, width - 2 * MARGIN) if is_file and self.footnote else []
        plot = Box(LEFT if is_wide else 40, top + legend, width - MARGIN - (names + 8 if names else 0), 0)
        plot = plot._replace(bottom=plot.top + HEIGHT)
        page = sheet(width, plot.bottom + 46 + (12 + 16 * len(notes) if notes else 0), plot)
        self._axes(page)
        for place, curve in enumerate(self.curves):
            _draw(page, curve, place)
        if is_wide:
            self._end_names(page, plot, names)
        else:
            _legend(page, self.curves, top)
        page.write((plot.left + plot.right) / 2, plot.bottom + 36, self.x_name, ha="center", colour=Colour.MUTED)
        if is_file:
            page.write(MARGIN, 30, self.title, LARGE, fontweight="bold")
            page.write(MARGIN, 52, self.subtitle, NORMAL)
        for line, note in enumerate(notes):
            page.write(MARGIN, plot.bottom + 60 + 16 * line, note, colour=Colour.MUTED)
        return page

    def _axes(self, page: Sheet) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

        axes = page.axes
        ys = [y for curve in self.curves for y in (*curve.ys, *curve.highs)]
        axes.set_ylim(self.least, max([self.most, *ys, self.least + 1e-9]) * 1.02)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
        xs = sorted({x for curve in self.curves for x in curve.xs})
        if self.is_log:
            axes.set_xscale("log", base=2)
        if self.is_origin:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if page.width > NARROW else 4))
        else:
            axes.set_xticks(xs)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0 if self.is_origin else xs[0], xs[-1])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y", color=Colour.MUTED.value, alpha=0.25, linewidth=1)
        if self.line is not None:
            axes.axhline(self.line, color=Colour.INK.value, linewidth=1.5, clip_on=False, gid="line")

    def _end_names(self, page: Sheet, plot: Box, width: float) -> None:
        low, high = page.axes.get_ylim()
        order = sorted(range(len(self.curves)), key=lambda place: -self.curves[place].ys[-1])
        wanted = [plot.bottom - (self.curves[place].ys[-1] - low) / (high - low) * HEIGHT + 4 for place in order]
        for place, y in zip(order, _apart(wanted, plot.bottom), strict=True):
            page.write(plot.right + 8, y, elided(self.curves[place].name, width), colour=HUES[place % len(HUES)])


def _apart(heights: list[float], most: float) -> list[float]:
    """Return heights, ascending, at least a line from the top and apart, at most `most` where they all fit above it.

    >>> _apart([10.0, 16.0, 50.0], 52.0)
    [14.0, 28.0, 50.0]
    """
    free, apart = 0.0, list[float]()
    for height in heights:
        free = max(free + 14, height)
        apart.append(free)
    limit = max(most, 14.0 * len(heights))
    for place in reversed(range(len(apart))):
        limit = min(limit, apart[place])
        apart[place] = limit
        limit -= 14
    return apart


def _said(curve: Curve) -> str:
    return f"{curve.name}: {', '.join(f'{y:.2f} at {x:g}' for x, y in zip(curve.xs, curve.ys, strict=True))}."


def _styles(place: int) -> Iterator[tuple[str, Any]]:
    yield "color", HUES[place % len(HUES)].value
    yield "linestyle", DASHES[place // len(HUES) % len(DASHES)]


def _draw(page: Sheet, curve: Curve, place: int) -> None:
    style = dict(_styles(place))
    hue = HUES[place % len(HUES)].value
    if curve.lows:
        page.axes.fill_between(
            curve.xs, curve.lows, curve.highs, color=hue, alpha=0.12, linewidth=0, clip_on=False, gid="band"
        )
    page.axes.plot(curve.xs, curve.ys, linewidth=2, clip_on=False, gid="curve", **style)
    for x, y in curve.rings:
        page.axes.plot(x, y, "o", markersize=10, mec=hue, mfc="none", markeredgewidth=2, clip_on=False, gid="ring")


def _legend(page: Sheet, curves: tuple[Curve, ...], top: float) -> None:
    from matplotlib.lines import Line2D

    for place, curve in enumerate(curves):
        y = top + 18 * place
        ends = [MARGIN / page.width, (MARGIN + 24) / page.width]
        height = [1 - (y - 4) / page.height] * 2
        key = Line2D(ends, height, linewidth=2, transform=page.figure.transFigure, **dict(_styles(place)))
        page.figure.add_artist(key)
        page.write(MARGIN + 32, y, elided(curve.name, page.width - 2 * MARGIN - 32))
