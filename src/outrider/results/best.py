"""The best method of each setting of a run, and whether it is faster than plain decoding beyond chance.

A method counts as faster only if the low end of its interval is above 1. Scripted methods and rows with a violation are
passed over. Each engine is compared with its own plain decoding.

Example: of hybrid at 1.69 [1.61, 1.78] and suffix at 2.10 [0.95, 3.10], the best is hybrid.
"""

from collections.abc import Sequence
from typing import NamedTuple

from outrider.results.derive import ALL
from outrider.results.rows import PLAIN, SERVING, Row
from outrider.results.statistics import Interval

__all__ = ["OURS", "Setting", "best_of", "comparable", "interval_of", "is_faster", "is_slower", "settings_of"]

OURS = "outrider"
"""Our own engine, as rows name it."""


class Setting(NamedTuple):
    """The rows that are compared with one another."""

    engine: str
    batch: int
    temperature: float

    @classmethod
    def of(cls, row: Row) -> "Setting":
        return cls(row.engine, row.batch, row.temperature)


def settings_of(rows: Sequence[Row]) -> list[Setting]:
    """Return the settings of engines that have plain decoding of their own, in order."""
    return list(dict.fromkeys(Setting.of(row) for row in rows if row.engine in (OURS, *SERVING)))


def comparable(rows: Sequence[Row], setting: Setting) -> list[Row]:
    """Return the rows of methods at one setting, over all categories; none if several were measured and not summed up.

    Without a method there is nothing to compare.
    """
    members = [row for row in rows if Setting.of(row) == setting]
    categories = {row.category for row in members}
    if len(categories) > 1:
        members = [row for row in members if row.category == ALL]
    return [
        row
        for row in members
        if row.method != PLAIN and row.speedup is not None and not row.scripted and row.lossless.verdict != "violated"
    ]


def best_of(rows: Sequence[Row]) -> Row:
    """Return the fastest of comparable rows that is faster beyond chance; the fastest of all where none is."""
    sure = [row for row in rows if is_faster(row)]
    return max(sure or rows, key=lambda row: interval_of(row).point)


def interval_of(row: Row) -> Interval:
    """Return the speedup of a row that has one."""
    assert row.speedup is not None, "compared rows have one"
    return row.speedup


def is_faster(row: Row) -> bool:
    """Return whether the whole interval is above 1; of one prompt alone, the figure itself."""
    found = row.speedup
    return found is not None and (found.point if found.low is None else found.low) > 1


def is_slower(row: Row) -> bool:
    """Return whether the whole interval is below 1; of one prompt alone, the figure itself."""
    found = row.speedup
    return found is not None and (found.point if found.high is None else found.high) < 1
