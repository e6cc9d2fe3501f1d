"""Calls of tools: read from text however it is cut, and offered only where the template has them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from outrider.serve.tools import ToolParser

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
LONE = r'<tool_call>{"name": "say", "arguments": {"t": "\ud83d"}}</tool_call>'  # of a surrogate pair
CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("plain text", "plain text", []),
    (f"Let me look. {CALL}", "Let me look. ", [("weather", '{"city": "Rome"}')]),
    (f"{CALL}\n{CALL}", "", [("weather", '{"city": "Rome"}')] * 2),
    ("a <tool_call>no json</tool_call> b", "a <tool_call>no json</tool_call> b", []),
    ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    ("ends in <tool_", "ends in <tool_", []),
    ('<tool_call>{"name": "f"}', "", [("f", "{}")]),
    ("<tool_call>{", "<tool_call>{", []),
    (LONE, LONE, []),
]


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolParser()
    results = [*map(parser.push, pieces), parser.flush()]
    calls = [(call.name, call.arguments) for _, found in results for call in found]
    return "".join(content for content, _ in results), calls


@given(st.sampled_from(CASES), st.data())
def test_calls_are_found_however_the_text_is_cut(case: tuple[str, str, Any], data: Any) -> None:
    text, content, calls = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces) == (content, calls)
