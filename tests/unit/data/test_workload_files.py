"""The benchmark's prompt files keep the format that `workloads/README.md` promises."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from outrider.data.workloads import CATEGORIES

WORKLOADS = Path(__file__).parents[3] / "workloads"
LONG_CATEGORIES = ("summary", "document_qa", "editing")
REQUIRED_KEYS = {"id", "category", "turns", "max_new_tokens"}
OPTIONAL_KEYS = {"system"}
MIN_PROMPTS = 12
# 1,000 to 3,000 tokens, at roughly 0.65 to 0.77 words per token of English.
LONG_CHARS = range(3_500, 12_000)  # about 870 to 2,600 tokens: prose has 4.6 characters a token, code and tables 3
MIN_LONG_PROMPTS = 10
# UTF-8 read as Latin-1 or Windows-1252 turns accents and quotes into these pairs.
MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(prompt: dict[str, Any]) -> list[str]:
    return [*prompt["turns"], *([prompt["system"]] if "system" in prompt else [])]


def repeated(values: list[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def every_prompt() -> list[dict[str, Any]]:
    return [prompt for path in sorted(WORKLOADS.glob("*.jsonl")) for prompt in load(path)]


def test_there_is_one_file_per_category() -> None:
    assert {path.stem for path in WORKLOADS.glob("*.jsonl")} == set(CATEGORIES)


def test_the_readme_names_every_category() -> None:
    readme = (WORKLOADS / "README.md").read_text(encoding="utf-8")
    assert [category for category in CATEGORIES if f"`{category}.jsonl`" not in readme] == []


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_line_has_the_documented_keys_and_types(category: str) -> None:
    prompts = load(WORKLOADS / f"{category}.jsonl")
    assert len(prompts) >= MIN_PROMPTS
    for prompt in prompts:
        keys = set(prompt)
        assert REQUIRED_KEYS <= keys <= REQUIRED_KEYS | OPTIONAL_KEYS, prompt.get("id")
        assert prompt["category"] == category
        assert re.fullmatch(rf"{category}-\d\d", prompt["id"]), prompt["id"]
        assert type(prompt["max_new_tokens"]) is int, prompt["id"]
        assert prompt["max_new_tokens"] > 0, prompt["id"]
        assert type(prompt["turns"]) is list, prompt["id"]
        assert len(prompt["turns"]) >= (2 if category == "multi_turn" else 1), prompt["id"]
        assert all(type(text) is str and text.strip() for text in texts(prompt)), prompt["id"]


@pytest.mark.parametrize("category", CATEGORIES)
def test_text_is_clean_unicode(category: str) -> None:
    raw = (WORKLOADS / f"{category}.jsonl").read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf"), "a byte order mark starts the file"
    assert raw.endswith(b"\n")
    for prompt in load(WORKLOADS / f"{category}.jsonl"):
        for text in texts(prompt):
            assert text == text.strip(), prompt["id"]
            assert unicodedata.is_normalized("NFC", text), prompt["id"]
            assert not MOJIBAKE.search(text), prompt["id"]
            odd = [char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs", "Cn"}]
            assert set(odd) <= {"\n", "\t"}, prompt["id"]
            assert "\ufffd" not in text, prompt["id"]


def test_ids_are_unique_over_all_files() -> None:
    assert repeated([prompt["id"] for prompt in every_prompt()]) == []


def test_no_prompt_appears_twice() -> None:
    folded = [" ".join("\n".join(prompt["turns"]).casefold().split()) for prompt in every_prompt()]
    assert repeated(folded) == []


@pytest.mark.parametrize("category", LONG_CATEGORIES)
def test_most_prompts_of_a_long_category_are_long(category: str) -> None:
    num_chars = [len(" ".join(texts(prompt))) for prompt in load(WORKLOADS / f"{category}.jsonl")]
    assert sum(count in LONG_CHARS for count in num_chars) >= MIN_LONG_PROMPTS, sorted(num_chars)
