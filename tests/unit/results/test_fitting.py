"""Tables fit their terminal without losing a name or a digit."""

import io
from operator import itemgetter

import pytest
from rich.cells import cell_len
from rich.console import Console

from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.sheet import Column, Sheet

LINES = (
    ("summarization", "draft_model:layers=0", "123.4", "2.25", "1.50", "exact"),
    ("all", "none", "99.9", "1.00", "-", "exact but for 3 ties"),
)
SHEET = Sheet(
    "a title",
    (
        Column("category", itemgetter(0), kind="name"),
        Column("method", itemgetter(1), kind="name"),
        Column("tok/s", itemgetter(2), drop=2),
        Column("tau", itemgetter(3), legend="tau: tokens per forward"),
        Column("even", itemgetter(4), drop=1, legend="even: where it loses"),
        Column("lossless", itemgetter(5), kind="text"),
    ),
    LINES,
    lambda line: "green" if line == LINES[0] else "",
)


def names(*columns: str) -> tuple[Column[tuple[str, ...]], ...]:
    return tuple(Column(name, itemgetter(place), kind="name") for place, name in enumerate(columns))


def shown(sheet: Sheet[tuple[str, ...]], width: int, **more: object) -> str:
    console = Console(file=io.StringIO(), width=width, **more)  # type: ignore[arg-type]
    print_sheet(sheet, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", [20, 30, 40, 60, 70, 78, 80, 200])
def test_nothing_is_cut_off(width: int) -> None:
    text = shown(SHEET, width)
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    for number in ("2.25", "1.00"):
        assert number in text
    left_out = [name for name in ("even", "tok/s") if name in text.partition("left out")[2]]
    assert ("1.50" in text) == ("even" not in left_out)
    assert ("123.4" in text) == ("tok/s" not in left_out)


def test_columns_go_in_the_order_of_their_weight() -> None:
    assert "left out" not in shown(SHEET, 200)
    assert "left out at 75 columns: even;" in squeezed_note(shown(SHEET, 75))
    assert "left out at 69 columns: tok/s, even;" in squeezed_note(shown(SHEET, 69))
    assert "even: where it loses" in shown(SHEET, 200)
    assert "even: where it loses" not in shown(SHEET, 75)


def squeezed_note(text: str) -> str:
    return " ".join(text.split())


def test_names_wrap_before_a_table_becomes_a_list() -> None:
    text = shown(SHEET, 45)
    assert "category" in text.splitlines()[2]
    assert "exact" in text
    listed = shown(SHEET, 24)
    assert "tau: 2.25" in listed
    assert "lossless: exact but for 3 ties" in squeezed_note(listed)
    assert "summarization, draft_model:layers=0" in squeezed_note(listed).replace("draft_model: ", "draft_model:")


def test_hostile_text_is_text() -> None:
    name = "a[/b]|`<script>`\x1b[31m\n\u202e[red]"
    sheet = Sheet(name, names("x", "y"), ((name, name),))
    for width in (12, 60, 300):
        text = shown(sheet, width)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert squeezed(r"a[/b]|`<script>`\x1b[31m\n\u202e[red]") in squeezed(text)
    console = Console(file=io.StringIO(), width=200)
    print_note(name, console)
    assert console.file.getvalue() == "a[/b]|`<script>`\\x1b[31m\\n\\u202e[red]\n"  # type: ignore[attr-defined]


def test_colours_are_explained_where_there_are_some() -> None:
    assert "green: faster" in shown(SHEET, 200, force_terminal=True, color_system="standard")
    assert "green: faster" not in shown(SHEET, 200)


def test_wide_characters_are_measured() -> None:
    sheet = Sheet("t", (*names("name"), Column("n", itemgetter(1))), (("漢字漢字漢字漢字", "1.00"),))
    assert all(cell_len(line) <= 22 for line in shown(sheet, 22).splitlines())
    assert "漢字漢字漢字漢字" in shown(sheet, 22)
