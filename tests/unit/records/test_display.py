"""Whatever a text holds, a terminal shows it and Markdown renders it as it is."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outrider.records.display import markdown_code, markdown_text, visible, visible_line

ANYTHING = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08\x7f\x00", r"a\x0db\x08\x7f\x00"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\udc80", r"\udc80"),
        ("\u2028\ufeff\u200b", r"\u2028\ufeff\u200b"),
        ("\U000e0001", r"\U000e0001"),
        ("line\n\ttab é 漢 👩\u200d🚀", "line\n\ttab é 漢 👩\u200d🚀"),
    ],
)
def test_commands_are_shown_and_text_is_kept(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_line_stays_one_line() -> None:
    assert visible_line("a\nb\tc\x1b") == r"a\nb\tc\x1b"


@given(ANYTHING)
def test_nothing_that_commands_a_terminal_is_left(text: str) -> None:
    for shown, kept in ((visible(text), "\n\t"), (visible_line(text), "")):
        assert all(unicodedata.category(one) not in ("Cc", "Cs", "Zl", "Zp") or one in kept for one in shown)
        assert all(unicodedata.bidirectional(one) not in BIDI for one in shown)
        shown.encode("utf-8")


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def rendered(markdown: str) -> str:
    """What a renderer shows: entities and backslash escapes undone, as CommonMark 0.31 says in sections 2.4 and 2.5."""
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@given(ANYTHING)
def test_markdown_shows_the_text_itself(text: str) -> None:
    escaped = markdown_text(text)
    assert rendered(escaped) == visible_line(text)
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", escaped)
    assert not set(bare) & set("|`*[]<>~$\n")
    assert re.search(r"&(?!lt;|gt;|amp;)", escaped) is None
    assert not re.match(r"#|[-+]\s|\d+[.)]", escaped)


@given(ANYTHING)
@example("")
@example(" ")
@example("\\|")
def test_a_code_span_ends_where_it_should(text: str) -> None:
    span = markdown_code(text)
    fence = re.match("`+", span)
    assert fence is not None
    inner = span[len(fence[0]) : -len(fence[0])]
    assert span.endswith(fence[0])
    assert fence[0] not in re.findall("`+", inner)
    assert "|" not in inner.replace("\\|", "")
    assert inner.replace("\\|", "|").strip() == (visible_line(text).strip() or "-")


def test_names_stay_readable() -> None:
    assert markdown_text("draft_model") == "draft_model"
    assert markdown_text("_x_ 2 * 3") == r"\_x\_ 2 \* 3"
    assert markdown_code("ngram:max_n=4") == "`ngram:max_n=4`"
    assert markdown_text("# title") == r"\# title"
    assert markdown_text("1. item") == r"1\. item"
    assert markdown_text("-") == "-"
