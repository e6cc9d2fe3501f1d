"""The picture of a run: speedup over plain decoding, one bar per category and method.

    python -m outrider.results.pages.chart report.json out.svg [--batch 1] [--temperature 0] [--manifest manifest.json]
    python -m outrider.results.pages.chart report.json out.svg --over-batches  over batches

A bar's length is the speedup, from 0. The line at 1 is plain decoding: a bar that ends before it lost. The whisker is
the 95 % interval, and the colour says what it allows to claim: faster (all of it above 1), slower (all of it below 1),
or neither. Losing cells are drawn like winning ones.

The file is one self-contained SVG without scripts or fonts. Its greys and hues have about the same contrast on white
and on black, its description says every bar in words, and text that comes from the report is escaped.

Example: a speedup of 1.92 [1.71, 2.10] is a bar to 1.92 with a whisker from 1.71 to 2.10.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from outrider.errors import OutriderError, RunError
from outrider.records.provenance import Hardware, manifest_from_json
from outrider.results.figures.bars import BarFigure, BarRow, Segment
from outrider.results.figures.canvas import Colour
from outrider.results.pages.batches import batch_chart
from outrider.results.rows import PLAIN, Report, Row, from_json

__all__ = ["chart", "described", "main", "speedup_figure", "speedups"]

LEGEND: Final = (
    (Colour.FASTER, "faster"),
    (Colour.SLOWER, "slower"),
    (Colour.NEITHER, "interval contains 1"),
)


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
    title = f"Speedup over plain decoding, {_setting(rows[0])}"
    return speedup_figure(title, rows, _footnote(report, rows, hardware)).svg()


def speedup_figure(title: str, rows: Sequence[Row], footnote: str = "") -> BarFigure:
    """Return the figure of rows with a speedup, in groups by category where there are several."""
    is_grouped = len({row.category for row in rows}) > 1
    return BarFigure(
        title,
        rows=tuple(_bar(row, is_grouped) for row in rows),
        subtitle="Bars: geometric mean over prompts. Whiskers: 95 % interval. Longer is faster.",
        legend=LEGEND,
        line=1,
        line_name="plain decoding",
        least=1.25,
        footnote=footnote,
    )


def _bar(row: Row, is_grouped: bool) -> BarRow:
    found = row.speedup
    assert found is not None, "rows without a speedup are not drawn"
    notes = {
        "warm": row.state == "warm",
        "forced length": row.forced_length,
        "scripted": row.scripted,
        "unverified": row.lossless.verdict == "unverified",
        "NOT LOSSLESS": row.lossless.verdict == "violated",
    }
    said = ", ".join(note for note, holds in notes.items() if holds)
    note = f" ({said})" if said else ""
    interval = "" if found.low is None else f" (interval {found.low:.2f} to {found.high:.2f})"
    return BarRow(
        row.method,
        group=row.category if is_grouped else "",
        segments=(Segment(0, found.point, _colour(row)),),
        low=found.low,
        high=found.high,
        value=f"{found.point:.2f}x{note}",
        words=f"{row.category}, {row.method}{note}: {found.point:.2f} times plain decoding{interval}.",
    )


def _colour(row: Row) -> Colour:
    found = row.speedup
    if found is None or found.low is None or found.high is None or found.low <= 1 <= found.high:
        return Colour.NEITHER
    return Colour.FASTER if found.low > 1 else Colour.SLOWER


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
