"""Elements, escaping, and lines of text."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from outrider.results.pages.svg import element, escaped, text_width, wrapped


def test_the_docstring_example() -> None:
    assert element("text", escaped("a < b"), x=3, font_weight=600) == '<text x="3" font-weight="600">a &lt; b</text>'


@given(st.text(st.characters(codec="utf-8")), st.text())
def test_any_text_survives_as_content_and_attribute(content: str, attribute: str) -> None:
    parsed = ElementTree.fromstring(element("t", escaped(f"[{content}]"), label=attribute))
    allowed = [c for c in content if c in "\t\n" or (ord(c) >= 32 and c not in "\ufffe\uffff")]
    assert parsed.text == f"[{''.join(allowed)}]"


def test_lines_keep_all_words_and_fit() -> None:
    words = "one two three four five six seven eight nine ten " * 4
    lines = wrapped(words, 150, 11)
    assert " ".join(lines) == words.strip()
    assert len(lines) > 1
    assert all(text_width(line, 11) <= 150 for line in lines)
