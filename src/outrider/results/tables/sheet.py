"""A table before it is drawn: columns, each with its head, its cells, its meaning, and its turn to be left out.

Every table of the project is a `Sheet`: `outrider.results.tables.fitting` draws it on a terminal, `Sheet.markdown` on a
page. Both escape what others wrote.

Example: `Sheet("sizes", [Column("name", str, kind="name"), Column("length", lambda text: f"{len(text)}")], ["ab"])`
has the line `("ab", "2")`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

from outrider.records.display import markdown_code, markdown_text

__all__ = ["LOSES", "WINS", "Column", "Sheet", "legend_of"]

T = TypeVar("T")
LOSES, WINS = "red", "green"
MARKDOWN: Mapping[str, Callable[[str], str]] = {"name": markdown_text, "code": markdown_code, "text": markdown_text}


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column over items of type T.

    cell     text of an item
    legend   meaning of the column, printed below the table
    drop     turn at which a narrow terminal leaves the column out, 1 first; 0 stays
    kind     "number" is aligned right; "name", "code" and "text" are escaped, and may wrap; "raw" is Markdown. A name
             is the heading of its line where the table does not fit and becomes a list.
    """

    head: str
    cell: Callable[[T], str]
    _: KW_ONLY
    legend: str = ""
    drop: int = 0
    kind: Literal["number", "raw", "name", "code", "text"] = "number"


@dataclass(frozen=True)
class Sheet(Generic[T]):
    """A table of items, one a line.

    style   colour of an item's line, or empty
    """

    title: str
    columns: Sequence[Column[T]]
    items: Sequence[T]
    style: Callable[[T], str] = lambda item: ""

    @property
    def head(self) -> tuple[str, ...]:
        return tuple(column.head for column in self.columns)

    @cached_property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(column.cell(item) for column in self.columns) for item in self.items)

    @cached_property
    def styles(self) -> tuple[str, ...]:
        return tuple(map(self.style, self.items))

    @property
    def markdown(self) -> str:
        """The table and its legend, without the title."""
        shown = [MARKDOWN.get(column.kind, str) for column in self.columns]
        rule = "|".join("---:" if column.kind == "number" else "---" for column in self.columns)
        lines = [" | ".join(show(cell) for show, cell in zip(shown, line, strict=True)) for line in self.lines]
        legend = legend_of(self.columns)
        body = "".join(f"\n| {line} |" for line in lines)
        return f"| {' | '.join(self.head)} |\n|{rule}|{body}" + (f"\n\n{legend}" if legend else "")


def legend_of(columns: Sequence[Column[T]]) -> str:
    """Return what the columns mean, in a sentence; what two of them share is said once."""
    return "; ".join(dict.fromkeys(column.legend for column in columns if column.legend))
