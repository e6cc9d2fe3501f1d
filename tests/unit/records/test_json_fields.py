"""The reader of JSON objects against `json`, and its sentences."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.errors import CheckpointError, OutriderError, RunError
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields, parse_json, parse_value, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda inner: st.lists(inner)
)
GETTERS = ("integer", "number", "flag", "text", "section", "array", "integers", "texts", "sections")


def fields(**values: Any) -> Fields:
    return Fields(values, "config.json")


@given(values=st.dictionaries(st.text(), VALUES | st.dictionaries(st.text(), VALUES)))
def test_what_json_reads_is_read(values: dict[str, Any]) -> None:
    assert dict(parse_json(json.dumps(values), "a text")) == values
    assert parse_json(json.dumps(values).encode(), "a text").plain() == values


@given(value=VALUES | st.dictionaries(st.text(), VALUES), getter=st.sampled_from(GETTERS))
def test_a_getter_gives_its_type_or_the_key_by_name(value: Any, getter: str) -> None:
    kinds = {"integer": int, "number": float, "flag": bool, "text": str, "section": Fields}
    try:
        found = getattr(fields(some_key=value), getter)("some_key")
    except CheckpointError as error:
        message = str(error)
    else:
        assert isinstance(found, kinds.get(getter, list))
        assert getter == "section" or getter == "sections" or found == value
        return
    assert "config.json: some_key" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("getter", "value", "options", "sentence"),
    [
        ("integer", "64", {"low": 1}, r"some_key is '64' but must be an integer of at least 1; download"),
        ("integer", True, {}, "some_key is true but must be an integer;"),
        ("integer", 64.0, {}, "some_key is 64.0 but must be an integer;"),
        ("integer", 10**400, {}, "some_key is 1000"),
        ("integer", 9, {"low": 1, "high": 8}, "some_key is 9 but must be an integer from 1 to 8"),
        ("number", math.nan, {}, "some_key is NaN but must be a number"),
        ("number", math.inf, {}, "some_key is Infinity but must be a number"),
        ("number", 10**400, {}, "some_key is 1000"),
        ("number", 0, {"above": 0.0}, "some_key is 0 but must be a number greater than 0"),
        ("number", False, {}, "some_key is false but must be a number"),
        ("flag", 1, {}, "some_key is 1 but must be true or false"),
        ("flag", "false", {}, "some_key is 'false' but must be true or false"),
        ("text", "\ud800", {}, r"some_key is '\\ud800' but must be a string"),
        ("text", "silus", {"choices": ("silu", "gelu")}, "some_key is 'silus'; did you mean 'silu'"),
        ("text", None, {}, "some_key is null"),
        ("section", [], {}, r"some_key is \[\] but must be a JSON object"),
        ("integers", [1, "2"], {}, r"some_key\[1\] is '2' but must be an integer"),
        ("integers", [1, 2], {"length": 3}, r"some_key is \[1, 2\] but must be a list of 3 entries"),
        ("texts", [1], {}, r"some_key\[0\] is 1 but must be a string"),
        ("sections", [{}, 1], {}, r"some_key\[1\] is 1 but must be a JSON object"),
    ],
)
def test_sentences(getter: str, value: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        getattr(fields(some_key=value), getter)("some_key", **options)


def test_absent_and_null_give_the_default() -> None:
    for getter in GETTERS:
        for found in (fields(), fields(key=None)):
            assert getattr(found, getter)("key", None) is None
        with pytest.raises(CheckpointError, match="key is missing"):
            getattr(fields(), getter)("key")
    assert fields().integers("key", [3]) == [3]
    section = fields().section("rope", {"factor": "x"})
    with pytest.raises(CheckpointError, match=r"rope\.factor is 'x'"):
        section.number("factor")


def test_sections_name_the_way_to_a_key() -> None:
    outer = fields(layers=[{"rope": {"theta": "big"}}])
    with pytest.raises(CheckpointError, match=r"config.json: layers\[0\]\.rope\.theta is 'big'"):
        outer.sections("layers")[0].section("rope").number("theta")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "cannot be read as JSON"),
        (b'{"a": 1', "cannot be read as JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\xff"}', r"is not UTF-8 text \(byte 7\)"),
        (b"[" * 100_000, "nests deeper"),
        (b"[1]", "holds a list, not a JSON object"),
        (b"null", "holds null"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice, with two values"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_files_that_are_no_json_object(tmp_path: Path, data: bytes, sentence: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(RunError, match=sentence) as caught:
        read_json(file, RunError, "make it again")
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("; make it again")


def test_a_key_that_stands_twice_with_one_value_is_read() -> None:
    assert parse_value('{"a": [1], "a": [1]}', "a text") == {"a": [1]}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path)
    big = tmp_path / "big.json"
    big.write_text(" " * 100)
    with pytest.raises(OutriderError, match="has 100 bytes, more than 99"):
        read_json(big, max_bytes=99)


def test_values_are_shown_on_one_short_line() -> None:
    assert shown_json("a\n\x1b[31mb") == r"'a\n\x1b[31mb'"
    assert len(shown_json("x" * 10_000)) < 80
    assert shown_json(["é", 1]) == '["\\u00e9", 1]'
