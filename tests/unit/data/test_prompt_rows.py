"""Prompt files come with marks, blank lines, carriage returns and as arrays; what is damaged is named by line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from outrider.data.prompt_rows import read_prompt_rows
from outrider.errors import ConfigError

TWO = '{"prompt": "a"}\n{"prompt": "b"}\n'


def rows(path: Path, data: bytes) -> list[tuple[int, dict[str, Any]]]:
    path.write_bytes(data)
    return [(row.number, dict(row.fields)) for row in read_prompt_rows(path)]


GOOD = {
    "plain": (TWO.encode(), [1, 2]),
    "byte order mark": (TWO.encode("utf-8-sig"), [1, 2]),
    "carriage returns": (TWO.replace("\n", "\r\n").encode(), [1, 2]),
    "no newline at the end": (TWO.strip().encode(), [1, 2]),
    "blank lines": (("\n \t\n" + TWO + "\n\n").encode(), [3, 4]),
    "array": (("[" + TWO.strip().replace("\n", ",\n") + "]").encode(), [1, 2]),
    "pretty array": (json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=2).encode("utf-8-sig"), [1, 2]),
    "gzip": (gzip.compress(TWO.encode(), mtime=0), [1, 2]),
}


@pytest.mark.parametrize("name", GOOD)
def test_two_prompts_are_read(name: str, tmp_path: Path) -> None:
    data, numbers = GOOD[name]
    assert rows(tmp_path / "p.jsonl", data) == list(zip(numbers, [{"prompt": "a"}, {"prompt": "b"}], strict=True))


def test_one_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    assert rows(tmp_path / "p.json", json.dumps({"prompt": "a", "id": 1}, indent=1).encode()) == [
        (1, {"prompt": "a", "id": 1})
    ]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert rows(tmp_path / "p.jsonl", b"") == []
    assert rows(tmp_path / "p.jsonl", b"\xef\xbb\xbf\n[]") == []


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    data = '{"prompt": "a\u2028b\u0085c"}\n'.encode()
    assert rows(tmp_path / "p.jsonl", data) == [(1, {"prompt": "a\u2028b\u0085c"})]


def test_lines_before_a_bad_one_are_given(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": \n')
    found = read_prompt_rows(path)
    assert next(found).fields == {"prompt": "a"}
    with pytest.raises(ConfigError, match=r"p\.jsonl:2 is not JSON \(Expecting value at character"):
        next(found)


BAD = [
    (b'{"prompt": "a"}\n[1]\n', r"p\.jsonl:2 is not a JSON object"),
    (b"[1]\n", r"p\.jsonl row 1 is not a JSON object"),
    (b'{"prompt": "a"}{"prompt": "b"}', r"p\.jsonl:1 is not JSON \(Extra data at character 15\)"),
    (b'[{"prompt": "a"},\n {"prompt" 3}]', r"p\.jsonl:1 is not JSON \(.* at line 2, character"),
    (b'{"prompt": "a"}\n{"prompt": "caf\xe9"}', r"p\.jsonl:2 is not UTF-8 \(byte 15 is 0xe9\)"),
    (b'{"prompt": "a", "prompt": "b"}', r"p\.jsonl:1 .*the key 'prompt' twice"),
    (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", r"p\.jsonl:1 nests deeper"),
    (b'{"prompt": ' + b"1" * 5_000 + b"}", r"p\.jsonl:1 is not JSON that can be read"),
    ('{"prompt": "a"}'.encode("utf-16"), "the file is UTF-16 text; give JSON lines in UTF-8"),
    (b"PAR1" + bytes(8), "the file is a Parquet file"),
    (b"PK\x03\x04" + bytes(8), "the file is a zip archive"),
    (gzip.compress(TWO.encode() * 99, mtime=0)[:-12], "cannot be read .Compressed file ended"),
    (gzip.compress(TWO.encode(), mtime=0)[:12] + b"\xff" * 20, "cannot be read"),
]


@pytest.mark.parametrize(("data", "says"), BAD)
def test_a_damaged_file_is_named(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        rows(tmp_path / "p.jsonl", data)
    assert "p.jsonl" in str(raised.value)
    assert len(str(raised.value).split(str(tmp_path))) <= 3


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl cannot be read \(No such file"):
        list(read_prompt_rows(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        list(read_prompt_rows(tmp_path))
