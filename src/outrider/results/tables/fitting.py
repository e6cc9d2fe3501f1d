"""Draw a table so that it fits the terminal: nothing is cut off.

What does not fit is left out by column, in the columns' own turns, and a line below names it. If that is not enough,
names and texts wrap. On a terminal that is narrower still, every line of the table becomes a few lines,
`column: value`.

Example: where "even" has drop=1 and "e2e" drop=2, a table that is a little too wide loses "even", then "e2e".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outrider.records.display import visible_line
from outrider.results.tables.sheet import LOSES, WINS, Column, Sheet, legend_of

__all__ = ["print_note", "print_sheet"]

GAP = 2
"""Columns between two cells."""
NARROWEST_NAME = 8
COLOURS = f"{WINS}: faster, {LOSES}: slower, by more than chance"


class _Fit(NamedTuple):
    """The columns that are shown, and their widths; without widths the table does not fit."""

    places: Sequence[int]
    widths: Sequence[int]


def print_sheet(sheet: Sheet[Any], console: Console) -> None:
    """Print title, table, legend, and which columns were left out."""
    cells = [[visible_line(cell) for cell in line] for line in (sheet.head, *sheet.lines)]
    fit = _fit(sheet.columns, cells, console.width)
    console.print()
    print_note(sheet.title, console, style="bold")
    if fit.widths:
        console.print(_table(sheet, cells, fit))
    else:
        _print_listed(sheet, cells, console)
    legend = legend_of([sheet.columns[place] for place in fit.places])
    if any(sheet.styles) and console.color_system:
        legend += f"{'; ' if legend else ''}{COLOURS}"
    if legend:
        print_note(legend, console, style="dim")
    if left_out := [name for place, name in enumerate(cells[0]) if place not in fit.places]:
        note = f"left out at {console.width} columns: {', '.join(left_out)}; a wider terminal shows them"
        print_note(note, console, style="dim")


def print_note(text: str, console: Console, style: str = "") -> None:
    """Print a sentence that wraps between words, and within a word that is too long."""
    console.print(Text(visible_line(text), style=style, overflow="fold"))


def _fit(columns: Sequence[Column[Any]], cells: Sequence[Sequence[str]], limit: int) -> _Fit:
    natural = [max(cell_len(line[place]) for line in cells) for place in range(len(columns))]
    places = list(range(len(columns)))
    for turn in sorted({column.drop for column in columns} | {0}):
        places = [place for place in places if not 0 < columns[place].drop <= turn]
        if _total([natural[place] for place in places]) <= limit:
            return _Fit(places, [natural[place] for place in places])
    wrapped = [place for place in places if columns[place].kind != "number"]
    free = limit - _total([natural[place] if place not in wrapped else 0 for place in places])
    widths = _shared(free, [natural[place] for place in wrapped])
    if not widths:
        return _Fit(range(len(columns)), ())  # a list shows every column
    given = dict(zip(wrapped, widths, strict=True))
    return _Fit(places, [given.get(place, natural[place]) for place in places])


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _shared(free: int, wanted: Sequence[int]) -> list[int]:
    """Return widths that fill the free columns, short cells at full width; empty where one would get too little."""
    given: dict[int, int] = {}
    for place in sorted(range(len(wanted)), key=lambda place: wanted[place]):
        given[place] = min(wanted[place], free // (len(wanted) - len(given)))
        free -= given[place]
    is_enough = all(given[place] >= min(NARROWEST_NAME, wanted[place]) for place in given)
    return [given[place] for place in range(len(wanted))] if is_enough else []


def _table(sheet: Sheet[Any], cells: Sequence[Sequence[str]], fit: _Fit) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0))
    for place, width in zip(fit.places, fit.widths, strict=True):
        side: Any = "right" if sheet.columns[place].kind == "number" else "left"
        table.add_column(Text(cells[0][place]), width=width, justify=side, overflow="fold")
    for line, style in zip(cells[1:], sheet.styles, strict=True):
        table.add_row(*(Text(line[place]) for place in fit.places), style=style)
    return table


def _print_listed(sheet: Sheet[Any], cells: Sequence[Sequence[str]], console: Console) -> None:
    names = [place for place, column in enumerate(sheet.columns) if column.kind == "name"]
    for line, style in zip(cells[1:], sheet.styles, strict=True):
        heading = ", ".join(line[place] for place in names) or line[0]
        print_note(heading, console, style=f"bold {style}".strip())
        for place, cell in enumerate(line):
            if place not in names and cell not in ("", "-"):
                print_note(f"  {cells[0][place]}: {cell}", console, style=style)
