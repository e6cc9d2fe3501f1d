"""Up to which batch a method pays: its speedup over batch sizes, and where that falls below 1.

A larger batch makes verification dearer: rows that were nearly free while a forward waited for weights cost arithmetic
once many requests share it. So most methods win at small batches and lose at large ones. The crossover is the batch at
which the speedup passes 1 downwards for the first time, between two measured sizes by interpolation:

    log speedup is taken as linear in log batch;    speedup 1.2 at 4 and 0.9 at 8: crossover at 2^(2 + 0.63) = 6.2

It is read off the speedup and off both ends of its interval: `4.9 [4.1, 6.0]`, where the lower end loses certainty of a
win and the upper end begins the certainty of a loss. 0 means that the smallest measured batch already loses, infinity
that the largest does not. Where the lower end is never a win and the upper end never a loss, the method is about even.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outrider.results.rows import PLAIN, Report, Row

__all__ = ["Curve", "crossing", "curves_of"]

TOTAL = "all"


@dataclass(frozen=True)
class Curve:
    """Rows of one method at one temperature, by batch size, over all its prompts."""

    label: str
    temperature: float
    rows: tuple[Row, ...]

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(row.batch for row in self.rows)

    @property
    def points(self) -> list[float]:
        return [row.speedup.point for row in self.rows if row.speedup is not None]

    @property
    def lows(self) -> list[float]:
        """Lower ends; the speedup itself where there is no interval."""
        return [
            row.speedup.point if row.speedup.low is None else row.speedup.low
            for row in self.rows
            if row.speedup is not None
        ]

    @property
    def highs(self) -> list[float]:
        return [
            row.speedup.point if row.speedup.high is None else row.speedup.high
            for row in self.rows
            if row.speedup is not None
        ]

    @property
    def crossover(self) -> float:
        """The batch at which it begins to lose."""
        return crossing(self.batches, self.points)

    @property
    def words(self) -> str:
        """The crossover for a table: `4.9 [4.1, 6.0]`."""
        if not self._is_bounded:
            return f"{self._said(self.crossover)} [no interval]"
        ends = [crossing(self.batches, values) for values in (self.lows, self.highs)]
        said = f"{self._said(self.crossover)} [{', '.join(map(self._said, ends))}]"
        return f"{said}, about even" if ends == [0, math.inf] else said

    @property
    def _is_bounded(self) -> bool:
        """True if a row beside the crossover has an interval."""
        measured = [row.speedup for row in self.rows if row.speedup is not None]
        place = next((place for place, one in enumerate(measured) if one.point < 1), len(measured) - 1)
        return any(one.low is not None for one in measured[max(0, place - 1) : place + 1])

    def _said(self, batch: float) -> str:
        if batch == 0:
            return f"below {self.batches[0]}"
        return f"above {self.batches[-1]}" if math.isinf(batch) else f"{batch:.1f}"


def curves_of(report: Report) -> list[Curve]:
    """Return every method of ours, plain decoding included, that was measured at several batches."""
    rows = [row for row in report.rows if row.engine == "outrider" and (row.speedup or row.method == PLAIN)]
    whole = _over_all_prompts(rows)
    keys = dict.fromkeys((row.label, row.temperature) for row in whole)
    found = [
        Curve(
            label,
            temperature,
            tuple(
                sorted(
                    (row for row in whole if (row.label, row.temperature) == (label, temperature)),
                    key=lambda row: row.batch,
                )
            ),
        )
        for label, temperature in keys
    ]
    return [curve for curve in found if len(curve.rows) > 1]


def crossing(batches: Sequence[int], speedups: Sequence[float]) -> float:
    """Return the batch at which the speedup first falls below 1.

    >>> round(crossing([1, 2, 4, 8], [2.0, 1.6, 1.2, 0.9]), 1)
    6.2
    >>> crossing([1, 2], [0.9, 1.1]), crossing([1, 2], [1.2, 1.1])
    (0.0, inf)
    """
    if speedups[0] < 1:
        return 0.0
    for place in range(1, len(batches)):
        if speedups[place] < 1:
            before, after = (math.log(speedups[place - 1]), math.log(speedups[place]))
            low, high = (math.log2(batches[place - 1]), math.log2(batches[place]))
            return float(2 ** (low + (high - low) * before / (before - after)))
    return math.inf


def _over_all_prompts(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that sum up all categories, or all rows where there is one category."""
    totals = [row for row in rows if row.category == TOTAL]
    return totals or (list(rows) if len({row.category for row in rows}) == 1 else [])
