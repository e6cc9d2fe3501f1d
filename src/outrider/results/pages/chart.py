"""The picture of a run: speedup over plain decoding, one bar per category and method.

    python -m outrider.results.pages.chart report.json out.svg [--batch 1] [--temperature 0] [--manifest manifest.json]
    python -m outrider.results.pages.chart report.json out.svg --over-batches  over batches

A bar's length is the speedup, from 0: `length = speedup * unit`. The line at 1 is plain decoding, so a bar that ends
before it lost. The whisker is the 95 % interval, and the colour says what it allows to claim: faster (all of it above
1), slower (all of it below 1), or neither. Losing cells are drawn like winning ones.

The file is one self-contained SVG without scripts or fonts. Its greys and hues have about the same contrast on white
and on black, its description says every bar in words, and text that comes from the report is escaped.

Example: with 250 pixels for 1, a speedup of 1.92 [1.71, 2.10] is a bar of 480 pixels with a whisker from 427.5 to 525.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from outrider.errors import OutriderError, RunError
from outrider.records.provenance import Hardware, manifest_from_json
from outrider.results.pages.batches import batch_chart
from outrider.results.pages.svg import element, escaped, label, picture, text_width, wrapped
from outrider.results.rows import PLAIN, Report, Row, from_json
from outrider.results.statistics import Interval

__all__ = ["chart", "described", "main", "speedups"]

WIDTH, MARGIN, TOP = 820, 16, 112
BAR, PITCH, HEADING, SMALL, NORMAL, LARGE = 14, 23, 26, 11, 13, 18
INK, FASTER, SLOWER, NEITHER = "#747b85", "#2f81c7", "#c9642a", "#858d97"
LEGEND = {FASTER: "faster", SLOWER: "slower", NEITHER: "interval contains 1"}
TICKS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


@dataclass(frozen=True)
class Scale:
    """Speedup to pixels: x = left + speedup * unit, up to `most`."""

    left: float
    unit: float
    most: float

    def x(self, speedup: float) -> float:
        return self.left + speedup * self.unit


@dataclass(frozen=True)
class Bar:
    """One cell; `note` says what a reader must know about it."""

    category: str
    method: str
    note: str
    speedup: Interval

    @property
    def low(self) -> float:
        return self.speedup.point if self.speedup.low is None else self.speedup.low

    @property
    def high(self) -> float:
        return self.speedup.point if self.speedup.high is None else self.speedup.high

    @property
    def colour(self) -> str:
        if self.speedup.low is None or self.low <= 1 <= self.high:
            return NEITHER
        return FASTER if self.low > 1 else SLOWER

    @property
    def value(self) -> str:
        return f"{self.speedup.point:.2f}x{self.note}"

    @property
    def words(self) -> str:
        interval = "" if self.speedup.low is None else f" (interval {self.low:.2f} to {self.high:.2f})"
        return f"{self.category}, {self.method}{self.note}: {self.speedup.point:.2f} times plain decoding{interval}."


def speedups(report: Report, batch: int | None = None, temperature: float | None = None) -> list[Row]:
    """Return our rows with a speedup at one batch size and temperature, by default those of the first such row.

    Raises:
        RunError: if there is none; says what there is.
    """
    measured = [row for row in report.rows if row.engine == "outrider" and row.method != PLAIN and row.speedup]
    matching = [row for row in measured if batch in (None, row.batch) and temperature in (None, row.temperature)]
    found = [row for row in matching if (row.batch, row.temperature) == (matching[0].batch, matching[0].temperature)]
    if not found:
        known = ", ".join(dict.fromkeys(_setting(row) for row in measured)) or "no speedup at all"
        raise RunError(f"the report has no speedup at batch={batch}, temperature={temperature}; it has {known}")
    categories = list(dict.fromkeys(row.category for row in found))
    return sorted(found, key=lambda row: (row.category == "all", categories.index(row.category)))


def chart(
    report: Report, *, batch: int | None = None, temperature: float | None = None, hardware: str | None = None
) -> str:
    """Return the SVG of one batch size and temperature.

    Args:
        hardware: machine for the footnote; None takes the report's device.

    Raises:
        RunError: as `speedups`.
    """
    rows = speedups(report, batch, temperature)
    bars = [_bar(row) for row in rows]
    scale = _scale(bars)
    body, bottom = _plot(bars, scale)
    notes = wrapped(_footnote(report, rows, hardware), WIDTH - 2 * MARGIN, SMALL)
    title = f"Speedup over plain decoding, {_setting(rows[0])}"
    feet = [label(MARGIN, bottom + 46 + 16 * line, note, SMALL) for line, note in enumerate(notes)]
    parts = [*_head(title, bars), *_axis(scale, bottom), *body, *feet]
    return picture(parts, WIDTH, f"{bottom + 40 + 16 * len(notes) + MARGIN:.0f}", INK)


def _bar(row: Row) -> Bar:
    assert row.speedup is not None, "rows without a speedup are not drawn"
    notes = {
        "warm": row.state == "warm",
        "forced length": row.forced_length,
        "scripted": row.scripted,
        "unverified": row.lossless.verdict == "unverified",
        "NOT LOSSLESS": row.lossless.verdict == "violated",
    }
    said = ", ".join(note for note, holds in notes.items() if holds)
    return Bar(row.category, row.method, f" ({said})" if said else "", row.speedup)


def _scale(bars: Sequence[Bar]) -> Scale:
    left = MARGIN + 12 + max(text_width(bar.method, NORMAL) for bar in bars)
    most = max(1.25, *(bar.high for bar in bars))
    room = max(text_width(bar.value, NORMAL) for bar in bars) + 10
    return Scale(left, max(1.0, WIDTH - MARGIN - left - room) / most, most)


def _head(title: str, bars: Sequence[Bar]) -> Iterator[str]:
    yield element("title", escaped(title), id="title")
    yield element("desc", escaped(" ".join(bar.words for bar in bars)), id="desc")
    yield label(MARGIN, 30, title, LARGE, font_weight="600")
    yield label(MARGIN, 52, "Bars: geometric mean over prompts. Whiskers: 95 % interval. Longer is faster.", NORMAL)
    x = float(MARGIN)
    for colour, meaning in LEGEND.items():
        yield element("rect", x=x, y=65, width=11, height=11, rx=2, fill=colour)
        yield label(x + 17, 75, meaning, SMALL)
        x += 40 + text_width(meaning, SMALL)


def _axis(scale: Scale, bottom: float) -> Iterator[str]:
    step = next((tick for tick in TICKS if scale.most / tick <= 8), scale.most)
    for place in range(int(scale.most / step) + 1):
        x = scale.x(place * step)
        if place * step != 1:
            yield element("line", x1=x, x2=x, y1=TOP, y2=bottom, stroke=INK, stroke_opacity=0.25)
        yield label(x, bottom + 16, f"{place * step:g}", SMALL, text_anchor="middle")
    one = scale.x(1)
    yield element("line", x1=one, x2=one, y1=TOP - 6, y2=bottom, stroke=INK, stroke_width=1.5, **{"class": "plain"})
    yield label(one, TOP - 11, "plain decoding", SMALL, text_anchor="middle")


def _plot(bars: Sequence[Bar], scale: Scale) -> tuple[list[str], float]:
    """Return the bars by category, and where they end."""
    parts: list[str] = []
    y = float(TOP)
    for category, members in groupby(bars, key=lambda bar: bar.category):
        parts.append(label(MARGIN, y + 17, category, NORMAL, font_weight="600"))
        y += HEADING
        for bar in members:
            parts += _drawn(bar, scale, y)
            y += PITCH
    return parts, y + 4


def _drawn(bar: Bar, scale: Scale, y: float) -> Iterator[str]:
    middle = y + BAR / 2
    yield label(scale.left - 8, middle + 4.5, bar.method, NORMAL, text_anchor="end")
    yield element(
        "rect",
        x=scale.left,
        y=y,
        width=bar.speedup.point * scale.unit,
        height=BAR,
        fill=bar.colour,
        fill_opacity=0.45,
        data_category=bar.category,
        data_method=bar.method,
        **{"class": "bar"},
    )
    if bar.speedup.low is not None:
        low, high = scale.x(bar.low), scale.x(bar.high)
        ends = f"M{low:.2f} {middle - 4}v8M{low:.2f} {middle}H{high:.2f}M{high:.2f} {middle - 4}v8"
        yield element("path", d=ends, fill="none", stroke=bar.colour, stroke_width=2, **{"class": "whisker"})
    yield label(scale.x(scale.most) + 10, middle + 4.5, bar.value, NORMAL)


def _setting(row: Row) -> str:
    return f"batch {row.batch}, temperature {row.temperature:g}"


def _footnote(report: Report, rows: Sequence[Row], hardware: str | None) -> str:
    prompts = sorted({row.num_prompts for row in rows if row.category != "all"} or {row.num_prompts for row in rows})
    counts = f"{prompts[0]}" if len(prompts) == 1 else f"{prompts[0]} to {prompts[-1]}"
    commit = f"; commit {report.commit[:10]}{' with local changes' if report.dirty else ''}" if report.commit else ""
    title = f"; {report.notes[0].rstrip('.')}" if report.notes else ""
    where = f"{report.model}, on {hardware or report.device}"
    return f"{where}; prompts a category: {counts}, repeats: {rows[0].num_repeats}{commit}{title}."


def described(hardware: Hardware) -> str:
    """Return the machine in words: the GPUs, or the processor and its usable cores."""
    if hardware.gpus:
        kinds = dict.fromkeys(hardware.gpus)
        return ", ".join(f"{hardware.gpus.count(kind)} x {kind}" for kind in kinds)
    return f"{hardware.cpu}, {hardware.num_usable_cores} cores"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a report file; the manifest beside it, if there is one, names the machine."""
    parser = argparse.ArgumentParser(
        prog="python -m outrider.results.pages.chart", description="Draw a report's speedups."
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--over-batches", action="store_true", help="speedup against batch size, one line per method")
    parser.add_argument("--manifest", type=Path, help="by default manifest.json beside the report")
    given = parser.parse_args(arguments)
    beside = given.report.with_name("manifest.json")
    manifest = given.manifest or (beside if beside.exists() else None)
    try:
        machine = described(manifest_from_json(_read(manifest)).hardware) if manifest else None
        report = from_json(_read(given.report))
        if given.over_batches:
            drawn = batch_chart(report, temperature=given.temperature, hardware=machine)
        else:
            drawn = chart(report, batch=given.batch, temperature=given.temperature, hardware=machine)
    except OutriderError as error:
        print(f"outrider: {error}", file=sys.stderr)
        return 2
    given.out.write_text(drawn, encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}); give the report.json of a run") from error


if __name__ == "__main__":
    sys.exit(main())
