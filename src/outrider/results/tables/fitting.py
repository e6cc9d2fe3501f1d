"""Draw a table so that it fits the terminal: nothing is cut off.

What does not fit is left out by column, the least important first, and a line below says so. If that is not enough,
names are wrapped. On a terminal that is narrower still, every line of the table becomes a few lines, `column: value`.

Example: with `drops=("even", "e2e")`, a table that is a little too wide loses "even", and "e2e" too if need be.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outrider.records.display import visible_line
from outrider.results.tables.sheet import LOSES, WINS, Sheet

__all__ = ["print_note", "print_sheet"]

GAP = 2
"""Columns between two cells."""
NARROWEST_NAME = 8
COLOURS = f"{WINS}: faster, {LOSES}: slower, by more than chance"


class _Fit(NamedTuple):
    """Which columns are shown, and how wide each is; without widths the table does not fit."""

    places: Sequence[int]
    widths: Sequence[int]


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Title, table, legend, and what was left out."""
    cells = [[visible_line(cell) for cell in line] for line in (sheet.head, *sheet.lines)]
    fit = _fit(sheet, cells, console.width)
    console.print()
    print_note(sheet.title, console, style="bold")
    if fit.widths:
        console.print(_table(sheet, cells, fit))
    else:
        _print_listed(sheet, cells, fit.places, console)
    legend = sheet.explained([sheet.head[place] for place in fit.places])
    if any(sheet.styles) and console.color_system:
        legend += f"{'; ' if legend else ''}{COLOURS}"
    if legend:
        print_note(legend, console, style="dim")
    if left_out := [name for place, name in enumerate(cells[0]) if place not in fit.places]:
        note = f"left out at {console.width} columns: {', '.join(left_out)}; a wider terminal shows them"
        print_note(note, console, style="dim")


def print_note(text: str, console: Console, style: str = "") -> None:
    """A sentence that wraps between words, and within a word that is too long."""
    console.print(Text(visible_line(text), style=style, overflow="fold"))


def _fit(sheet: Sheet, cells: Sequence[Sequence[str]], limit: int) -> _Fit:
    natural = [max(cell_len(line[place]) for line in cells) for place in range(len(sheet.head))]
    places = list(range(len(sheet.head)))
    for name in (None, *sheet.drops):
        places = [place for place in places if sheet.head[place] != name]
        if _total([natural[place] for place in places]) <= limit:
            return _Fit(places, [natural[place] for place in places])
    names = [place for place in places if place in sheet.texts]
    room = limit - _total([natural[place] if place not in names else 0 for place in places])
    widths = _shared(room, [natural[place] for place in names])
    if not widths:
        return _Fit(range(len(sheet.head)), ())  # a list has room for all
    given = dict(zip(names, widths, strict=True))
    return _Fit(places, [given.get(place, natural[place]) for place in places])


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _shared(room: int, wanted: Sequence[int]) -> list[int]:
    """Return widths that fill the room, short names at their full width; empty where a name would get too little."""
    given: dict[int, int] = {}
    for place in sorted(range(len(wanted)), key=lambda place: wanted[place]):
        given[place] = min(wanted[place], room // (len(wanted) - len(given)))
        room -= given[place]
    is_enough = all(given[place] >= min(NARROWEST_NAME, wanted[place]) for place in given)
    return [given[place] for place in range(len(wanted))] if is_enough else []


def _table(sheet: Sheet, cells: Sequence[Sequence[str]], fit: _Fit) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0))
    for place, width in zip(fit.places, fit.widths, strict=True):
        is_text = place in sheet.texts
        table.add_column(Text(cells[0][place]), width=width, justify="left" if is_text else "right", overflow="fold")
    for line, style in zip(cells[1:], sheet.styles, strict=True):
        table.add_row(*(Text(line[place]) for place in fit.places), style=style)
    return table


def _print_listed(sheet: Sheet, cells: Sequence[Sequence[str]], places: Sequence[int], console: Console) -> None:
    for line, style in zip(cells[1:], sheet.styles, strict=True):
        names = ", ".join(line[place] for place in places if place in sheet.names)
        print_note(names or line[places[0]], console, style=f"bold {style}".strip())
        for place in places:
            if place not in sheet.names and line[place] not in ("", "-"):
                print_note(f"  {cells[0][place]}: {line[place]}", console, style=style)
