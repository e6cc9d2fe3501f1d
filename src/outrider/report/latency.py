"""The section on latency: distributions of the time to the first token, for each token after it, between bursts.

With a run's records a line gives the share of answers or bursts within a time; a report alone has percentiles.

Example: a line through 50 % at 9 ms and 99 % at 30 ms: half of the bursts came within 9 ms of the one before.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from outrider.report.answer import place_of
from outrider.report.cost import NAMES
from outrider.report.parts import Figure, Section, table_of
from outrider.report.sources import Source
from outrider.results.best import OURS, Setting, settings_of
from outrider.results.figures.bars import BarFigure, BarRow, Mark, Segment
from outrider.results.figures.canvas import Colour
from outrider.results.figures.lines import Curve, LineFigure
from outrider.results.latency import between_bursts_s, first_token_s, per_token_s
from outrider.results.rows import PLAIN, SERVING, Row
from outrider.results.statistics import Percentiles, percentiles
from outrider.results.tables.cells import by_category
from outrider.results.tables.sheet import Column, Sheet
from outrider.results.unit import UnitResult

__all__ = ["latency"]

LEVELS: Final = 100
"""Steps of a line at most."""


class _Kind(NamedTuple):
    """A latency: its name, and how a unit and a row give it; `per` is what a time belongs to."""

    name: str
    per: str
    times: Callable[[UnitResult], list[float]]
    of_row: Callable[[Row], Percentiles | None] = lambda row: None


KINDS: Final = (
    _Kind("Time to the first token", "answers", first_token_s, lambda row: row.ttft_s),
    _Kind("Time for each token after the first burst", "answers", per_token_s, lambda row: row.tpot_s),
    _Kind("Time from one burst of tokens to the next", "bursts", between_bursts_s),
)


class _Sample(NamedTuple):
    """Times of a method in milliseconds, ascending."""

    label: str
    times_ms: list[float]

    @property
    def found(self) -> Percentiles:
        """Percentiles of the times."""
        found = percentiles(self.times_ms)
        assert found is not None, "a sample has a time"
        return found


def latency(source: Source) -> Section | None:
    """Return the distributions of what a user waits for."""
    if source.bench is None:
        return None
    rows = [row for row in by_category(source.bench.rows) if row.engine in (OURS, *SERVING)]
    figures = list(_figures(rows, source.units))
    if not figures:
        return None
    says = ["All times are in milliseconds. The tokens of a step come at once, as a burst."]
    if any(isinstance(figure.drawing, LineFigure) for figure in figures):
        says.append(
            "A line gives the share within a time: the further left it rises, the better. An axis ends where every "
            "method has reached 99 %."
        )
    else:
        says.append("The disc is the median; the bar reaches to the 95th percentile, its pale end to the 99th.")
    return Section("latency", "Latency", says=tuple(says), figures=tuple(figures))


def _figures(rows: Sequence[Row], units: Sequence[UnitResult]) -> Iterator[Figure]:
    for setting in settings_of(rows)[:1]:
        members = [row for row in rows if Setting.of(row) == setting]
        shown = [row for row in members if row.category == "all"] or members
        for kind in KINDS:
            title = f"{kind.name}, ms, {place_of(setting)}"
            known = [row for row in rows if kind.of_row(row)]
            table = table_of(Sheet(title, _columns(kind), known))
            if samples := _samples(kind, shown, units):
                title = f"{kind.name}: share of {kind.per}, %, {place_of(setting)}"
                table = table if known else table_of(Sheet(title, SAMPLES, samples))
                yield Figure(_lines(title, samples), table)
            elif bars := list(_ranges(kind, shown)):
                yield Figure(BarFigure(title, rows=tuple(bars), legend=RANGES), table)


def _samples(kind: _Kind, rows: Sequence[Row], units: Sequence[UnitResult]) -> list[_Sample]:
    """Return the times of each method of the rows; plain decoding comes last, so that methods keep their colours."""
    found = {}
    for row in sorted(rows, key=lambda row: row.method == PLAIN):
        own = [unit for unit in units if _key(unit) == _key(row)]
        if times := sorted(1000 * seconds for unit in own for seconds in kind.times(unit)):
            found[row.label] = _Sample(row.label, times)
    return list(found.values())


def _key(one: Row | UnitResult) -> tuple[object, ...]:
    return (one.engine, one.method, one.state, one.batch, one.temperature, one.forced_length)


def _lines(title: str, samples: Sequence[_Sample]) -> LineFigure:
    end = max(sample.times_ms[math.ceil(0.99 * len(sample.times_ms)) - 1] for sample in samples) or 1.0
    curves = tuple(Curve(one.label, *_stairs(one.times_ms, end), words=_words(one)) for one in samples)
    return LineFigure(title, curves=curves, x_name="ms", is_origin=True, most=100.0)


def _stairs(times: Sequence[float], end: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the share of times within x, in per cent, as a staircase that ends at `end`.

    >>> _stairs([2.0, 3.0], 4.0)
    ((2.0, 2.0, 3.0, 3.0, 4.0), (0.0, 50.0, 50.0, 100.0, 100.0))
    """
    levels = min(LEVELS, len(times))
    xs, ys = list[float](), [0.0]
    for level in range(1, levels + 1):
        at = times[math.ceil(level * len(times) / levels) - 1]
        if at > end:
            break
        xs += [at, at]
        ys += [100 * level / levels] * 2
    return (*xs, end), tuple(ys)


def _words(sample: _Sample) -> str:
    found = sample.found
    return f"{sample.label}: median {found.p50:.1f}, 95th {found.p95:.1f}, 99th percentile {found.p99:.1f} ms."


RANGES: Final = ((Colour.FASTER, "median to 95th percentile"), (Colour.NEITHER, "to the 99th"))


def _ranges(kind: _Kind, rows: Sequence[Row]) -> Iterator[BarRow]:
    for row in rows:
        found = kind.of_row(row)
        if found is None or not math.isfinite(found.p99):
            continue
        low, high, last = (1000 * value for value in (found.p50, found.p95, found.p99))
        yield BarRow(
            row.label,
            group="" if row.category == "all" else row.category,
            segments=(Segment(low, high, Colour.FASTER), Segment(high, last, Colour.NEITHER)),
            marks=(Mark(low, Colour.FASTER),),
            value=f"{low:.1f} / {high:.1f} / {last:.1f}",
            words=f"{row.category}, {row.label}: median {low:.1f}, 95th {high:.1f}, 99th percentile {last:.1f} ms.",
        )


def _columns(kind: _Kind) -> tuple[Column[Row], ...]:
    def column(head: str, name: str) -> Column[Row]:
        return Column(head, lambda row: f"{1000 * getattr(kind.of_row(row), name):.1f}")

    return (*NAMES, column("Median", "p50"), column("95th percentile", "p95"), column("99th percentile", "p99"))


SAMPLES: Final[tuple[Column[_Sample], ...]] = (
    Column("Method", lambda sample: sample.label, kind="name"),
    Column("Bursts", lambda sample: f"{len(sample.times_ms):,}"),
    Column("Median", lambda sample: f"{sample.found.p50:.1f}"),
    Column("95th percentile", lambda sample: f"{sample.found.p95:.1f}"),
    Column("99th percentile", lambda sample: f"{sample.found.p99:.1f}"),
)
