"""A table before it is drawn, and how its cells are written.

Example of a speedup: `1.92 [1.71, 2.10]`; of one prompt alone: `1.92`, without an interval; unknown: `-`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.records.display import markdown_text
from outrider.results.rows import PLAIN, Row
from outrider.results.statistics import Interval

__all__ = ["LOSES", "WINS", "Sheet", "by_category", "interval_text", "number_text", "style_of"]

LOSES, WINS = "red", "green"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table.

    styles           of line i its colour, or empty
    legend           what columns mean: their names, and the explanation that is printed while one of them is shown
    names            places of the columns that hold names; they may wrap
    drops            columns that a narrow terminal does without, the first of them first
    ends_with_text   whether the last column holds words
    """

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    styles: tuple[str, ...]
    legend: tuple[tuple[tuple[str, ...], str], ...] = ()
    names: tuple[int, ...] = (0, 1)
    drops: tuple[str, ...] = ()
    ends_with_text: bool = False

    def explained(self, columns: Sequence[str]) -> str:
        """Return the legend of these columns, in a sentence."""
        return "; ".join(text for names, text in self.legend if {*names} & {*columns})

    @property
    def texts(self) -> tuple[int, ...]:
        """Places of the columns that hold words."""
        return (*self.names, len(self.head) - 1) if self.ends_with_text else self.names

    @property
    def markdown(self) -> str:
        """Without its title."""
        texts = {*self.texts}
        rule = "|".join("---" if place in texts else "---:" for place in range(len(self.head)))
        lines = [
            " | ".join(markdown_text(cell) if place in texts else cell for place, cell in enumerate(line))
            for line in self.lines
        ]
        body = "\n".join(f"| {line} |" for line in lines)
        legend = f"\n\n{self.explained(self.head)}" if self.legend else ""
        return f"| {' | '.join(self.head)} |\n|{rule}|\n{body}{legend}"


def by_category(rows: Sequence[Row]) -> list[Row]:
    """Categories in the order of the rows, "all" last; methods keep their order."""
    places = {category: place for place, category in enumerate(dict.fromkeys(row.category for row in rows))}
    places["all"] = len(places) + 1
    return sorted(rows, key=lambda row: places[row.category])


def style_of(row: Row) -> str:
    if row.lossless.verdict == "violated":
        return f"bold {LOSES}"
    if row.method == PLAIN or row.speedup is None:
        return ""
    return LOSES if row.speedup.point < 1 else WINS if (row.speedup.low or 0) > 1 else ""


def interval_text(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    ends = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.low is not None else ""
    return f"{interval.point:.2f}{ends}"


def number_text(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
