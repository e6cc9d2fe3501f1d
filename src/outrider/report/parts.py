"""Parts of a page: tables, figures and sections, all of plain text; the page escapes it.

Example: `table_of(sheet)` turns a `Sheet`, as the terminal shows it, into a table with a caption.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple, Protocol

from outrider.results.tables.sheet import LOSES, WINS, Sheet, legend_of

__all__ = ["Cell", "Drawing", "Figure", "Fragment", "Head", "Section", "Table", "table_of"]

Tone = Literal["", "faster", "slower"]
TONES: dict[str, Tone] = {WINS: "faster", LOSES: "slower"}


class Cell(NamedTuple):
    """A cell; its tone says what it allows to claim."""

    text: str
    tone: Tone = ""


class Head(NamedTuple):
    """The head of a column."""

    text: str
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a line names it. A folded one is shown when its reader asks for it."""

    caption: str
    heads: tuple[Head, ...]
    lines: tuple[tuple[Cell, ...], ...]
    legend: str = ""
    is_folded: bool = False


class Drawing(Protocol):
    """A figure that can be drawn at a width."""

    @property
    def title(self) -> str:
        """Accessible name."""

    def svg(self, width: float, prefix: str | None) -> str:
        """Return the SVG, every id of which begins with `prefix`."""


@dataclass(frozen=True)
class Figure:
    """A drawing and the table of its numbers."""

    drawing: Drawing
    table: Table


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """HTML that another part of the package makes, safe as it is, with the hashes of its style and its script."""

    html: str
    style_hash: str
    script_hash: str


@dataclass(frozen=True)
class Section:
    """A part of a run's page.

    name     its id in the address of the page
    says     paragraphs
    notes    a list behind them
    items    command lines or facts, one a line, as code
    """

    name: str
    title: str
    _: KW_ONLY
    says: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    items: tuple[str, ...] = ()
    fragment: Fragment | None = None


def table_of(sheet: Sheet[Any], caption: str | None = None) -> Table:
    """Return a sheet as a table."""
    return Table(
        sheet.title if caption is None else caption,
        tuple(Head(column.head, column.kind in ("number", "raw")) for column in sheet.columns),
        tuple(
            _line(cells, TONES.get(style.removeprefix("bold "), ""))
            for cells, style in zip(sheet.lines, sheet.styles, strict=True)
        ),
        legend_of(sheet.columns),
    )


def _line(cells: Sequence[str], tone: Tone) -> tuple[Cell, ...]:
    return tuple(Cell(cell, tone if place == 0 else "") for place, cell in enumerate(cells))
