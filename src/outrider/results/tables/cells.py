"""Cells that several tables of results share, and the order and colour of their lines.

Example of a speedup: `1.92 [1.71, 2.10]`; of one prompt alone: `1.92`, without an interval; unknown: `-`.
"""

from collections.abc import Sequence

from outrider.results.rows import PLAIN, Row
from outrider.results.statistics import Interval
from outrider.results.tables.sheet import LOSES, WINS, Column

__all__ = [
    "CATEGORY",
    "METHOD",
    "accepted_text",
    "by_category",
    "end_to_end_text",
    "interval_text",
    "number_text",
    "rate_text",
    "speedup_text",
    "style_of",
]


def by_category(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with categories in the order of their first row, "all" last; within one they keep their order."""
    places = {category: place for place, category in enumerate(dict.fromkeys(row.category for row in rows))}
    places["all"] = len(places) + 1
    return sorted(rows, key=lambda row: places[row.category])


def style_of(row: Row) -> str:
    """Return the colour of a row: faster, slower, or neither for certain."""
    if row.lossless.verdict == "violated":
        return f"bold {LOSES}"
    if row.method == PLAIN or row.speedup is None:
        return ""
    return LOSES if row.speedup.point < 1 else WINS if (row.speedup.low or 0) > 1 else ""


def interval_text(interval: Interval | None) -> str:
    """Return an estimate with its bounds, where it has some; a dash where it is unknown.

    >>> interval_text(Interval(point=1.92, low=1.71, high=2.1)), interval_text(None)
    ('1.92 [1.71, 2.10]', '-')
    """
    if interval is None:
        return "-"
    ends = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.low is not None else ""
    return f"{interval.point:.2f}{ends}"


def number_text(value: float | None, style: str = ".2f") -> str:
    """Return a number in this format, or a dash where it is unknown."""
    return "-" if value is None else format(value, style)


def rate_text(row: Row) -> str:
    """Return decoded tokens per second of all requests together."""
    return number_text(row.tokens_per_s, ".1f")


def speedup_text(row: Row) -> str:
    """Return the speedup in decoding over plain decoding, which is the baseline."""
    return "1 (baseline)" if row.method == PLAIN else interval_text(row.speedup)


def end_to_end_text(row: Row) -> str:
    """Return the speedup with the time for prompts included."""
    if row.method == PLAIN:
        return "1"
    return "-" if row.speedup_end_to_end is None else number_text(row.speedup_end_to_end.point)


def accepted_text(row: Row, depths: int = 3) -> str:
    """Return the share of drafts accepted to each of the first depths."""
    return " ".join(map(number_text, (row.acceptance_per_pos or ())[:depths])) or "-"


CATEGORY: Column[Row] = Column("category", lambda row: row.category, kind="name")
METHOD: Column[Row] = Column("method", lambda row: row.label, kind="name")
