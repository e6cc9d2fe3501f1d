"""Public question sets by name: rows written here, in the layouts in which the sets are published."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from outrider.data.questions.sets import SETS, chosen_set
from outrider.data.workloads import load_prompts
from outrider.errors import ConfigError

MASKED = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"

# a row or two as each set's file holds them
FILES: dict[str, list[Mapping[str, Any]]] = {
    "spec-bench": [
        {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Shorten it."]},
        {"question_id": 481, "category": "rag", "turns": ["Where is it?"], "reference": ["here"]},
    ],
    "mt-bench": [{"question_id": 81, "category": "writing", "turns": ["Write a line.", "Shorten it."]}],
    "humaneval": [
        {
            "task_id": "HumanEval/0",
            "prompt": 'def one():\n    """Return 1."""\n',
            "entry_point": "one",
            "canonical_solution": "    return 1\n",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
        }
    ],
    "gsm8k": [{"question": "What is 2 and 3?", "answer": "2 + 3 = 5\n#### 5"}],
    "speed-bench": [
        {
            "question_id": "a1",
            "category": "coding",
            "sub_category": "python",
            "source": "somewhere",
            "src_id": "7",
            "messages": [{"role": "user", "content": "Sort it."}, {"role": "user", "content": "Now backwards."}],
        }
    ],
}
READ = {
    "spec-bench": [("81", "writing", 2), ("481", "rag", 1)],
    "mt-bench": [("81", "writing", 2)],
    "humaneval": [("HumanEval/0", "humaneval", 1)],
    "gsm8k": [("gsm8k-01", "gsm8k", 1)],
    "speed-bench": [("a1", "coding", 2)],
}


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SETS)
def test_a_file_of_each_set_keeps_names_and_categories(name: str, tmp_path: Path) -> None:
    found = load_prompts(f"{name}={written(tmp_path / 'test.jsonl', FILES[name])}")
    assert [(one.id, one.category, len(one.turns)) for one in found] == READ[name]


def install_hub(monkeypatch: pytest.MonkeyPatch, **columns: list[Any]) -> list[Any]:
    """A package `datasets` that answers with these columns; gives what it was asked for."""
    asked: list[Any] = []

    class Rows(dict[str, list[Any]]):
        column_names = tuple(columns)

    def load(name: str, configuration: str | None, *, split: str, trust_remote_code: bool) -> Rows:
        asked.append((name, configuration, split))
        return Rows(columns)

    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("outrider.data.prompt_rows.importlib.util.find_spec", lambda name: object())
    return asked


def test_speed_bench_from_the_hub_without_its_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = install_hub(
        monkeypatch,
        question_id=["q1", "q2", "q3"],
        turns=[["Sort it.", "Now backwards."], [MASKED], ["Sing."]],
        category=["coding", "math", "writing"],
        sub_category=["python", "x", "y"],
    )
    notes: list[str] = []
    found = load_prompts("speed-bench", note=notes.append)
    assert [(one.id, one.category, one.turns) for one in found] == [
        ("q1", "coding", ("Sort it.", "Now backwards.")),
        ("q3", "writing", ("Sing.",)),
    ]
    assert len(notes) == 1
    assert "1 of 3 rows of SPEED-Bench, which are placeholders" in notes[0]
    load_prompts("speed-bench@throughput_1k")
    load_prompts("nvidia/SPEED-Bench@throughput_8k")
    assert asked == [("nvidia/SPEED-Bench", name, "test") for name in ("qualitative", "throughput_1k", "throughput_8k")]


def test_mt_bench_and_gsm8k_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = install_hub(
        monkeypatch, prompt=[["Write.", "Again."]], category=["writing"], reference=[[]], question=["2 and 3?"]
    )
    [found] = load_prompts("mt-bench")
    assert (found.id, found.category, found.turns) == ("mt-bench-01", "writing", ("Write.", "Again."))
    install_hub(monkeypatch, question=["2 and 3?"], answer=["#### 5"])
    [found] = load_prompts("openai/gsm8k")
    assert (found.category, found.turns) == ("gsm8k", ("2 and 3?",))
    assert asked == [("HuggingFaceH4/mt_bench_prompts", None, "train")]


def test_what_names_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "gsm8k", [{"prompt": "mine"}])
    assert chosen_set("gsm8k") is None, "a file of that name comes first"
    assert chosen_set("hub:openai/gsm8k@main:test:question") is None
    assert chosen_set("mine.jsonl") is None
    with pytest.raises(ConfigError, match="No such file"):
        load_prompts("mt-bench=nowhere.jsonl")
    with pytest.raises(ConfigError, match=r"Spec-Bench is not on the hub; download .*, and give spec-bench=FILE"):
        load_prompts("spec-bench")
    with pytest.raises(ConfigError, match="names no file; write humaneval=FILE"):
        load_prompts("humaneval=")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("spec-bench", {"prompt": "one"}, "has no 'turns'; it is no row of Spec-Bench"),
        ("gsm8k", {"problem": "one"}, "has no 'question'; it is no row of GSM8K"),
        ("mt-bench", {"turns": ["one"]}, "has no 'category'; it is no row of MT-Bench"),
    ],
)
def test_a_row_of_another_set(name: str, row: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_prompts(f"{name}={written(tmp_path / 'rows.jsonl', [row])}")
