"""Prompts come in from every layout the field uses, and a bad line is named."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from outrider import env
from outrider.data.prompt_rows import HubPlace, parse_hub
from outrider.data.prompts import FilePrompts
from outrider.data.workloads import (
    CATEGORIES,
    Conversation,
    load_category,
    load_prompts,
    workload_hash,
)
from outrider.env import data_directory
from outrider.errors import ConfigError


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_category_of_ours_is_loaded_by_name() -> None:
    conversations = load_category("multi_turn")
    assert len(conversations) >= 12
    assert all(conversation.category == "multi_turn" for conversation in conversations)
    assert all(len(conversation.turns) >= 2 for conversation in conversations)


def test_a_category_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown category 'edit'.*did you mean 'editing'"):
        load_category("edit")


def test_prompts_lie_beside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lib" / "site-packages" / "outrider"
    package.mkdir(parents=True)
    monkeypatch.setattr(env, "PACKAGE", package)
    with pytest.raises(ConfigError, match="install outrider again"):
        data_directory("workloads")
    (package / "workloads").mkdir()
    write(package / "workloads" / "chat.jsonl", {"id": "chat-01", "category": "chat", "turns": ["hi"]})
    assert load_category("chat") == [Conversation(id="chat-01", category="chat", turns=("hi",))]


def test_the_layouts_of_the_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mixed.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["Compose", "Rewrite"], "reference": []},
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "x", "test": "y", "entry_point": "f"},
        {"question": "How many?", "answer": "#### 3"},
        {"prompt": "Why?", "max_new_tokens": 7, "system": "Be brief."},
        {"question": "Who?"},
    )
    assert load_prompts(path, max_new_tokens=64) == [
        Conversation(id="81", category="writing", turns=("Compose", "Rewrite"), max_new_tokens=64),
        Conversation(id="HumanEval/0", category="mixed", turns=("def f():\n",), max_new_tokens=64),
        Conversation(id="mixed-03", category="mixed", turns=("How many?",), max_new_tokens=64),
        Conversation(id="mixed-04", category="mixed", turns=("Why?",), system="Be brief.", max_new_tokens=7),
        Conversation(id="mixed-05", category="mixed", turns=("Who?",), max_new_tokens=64),
    ]
    assert [item.id for item in load_prompts(path, limit=2)] == ["81", "HumanEval/0"]


def test_conversations_and_instructions_are_read_as_training_reads_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mixed.jsonl",
        {"instruction": "Translate.", "input": "The cat sleeps.", "output": "Le chat dort."},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}], "id": "g-1"},
    )
    read = load_prompts(path)
    asked = FilePrompts(str(path)).take(0, 9, lambda jobs, tokens: None)
    assert [(one.turns, one.system) for one in read] == [(one.turns, one.system) for one in asked]
    assert [one.turns for one in read] == [("Translate.\n\nThe cat sleeps.",), ("a",), ("a",)]
    assert [one.id for one in read] == ["mixed-01", "mixed-02", "g-1"]


def test_a_text_may_hold_any_character_but_a_newline_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b\u0085c"}\n\n{"prompt": "d"}', encoding="utf-8")
    assert [item.turns for item in load_prompts(path)] == [("a\u2028b\u0085c",), ("d",)]
    assert [item.id for item in load_prompts(path)] == ["p-01", "p-03"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"p\.jsonl:2 is not JSON"),
        ("[1]", r"p\.jsonl:2 is not a JSON object"),
        ('{"words": "x"}', r"p\.jsonl:2 has none of .* it has words"),
        ('{"prompt": " "}', r"'prompt' in .*p\.jsonl:2 must hold text"),
        ('{"turns": []}', r"'turns' in .*p\.jsonl:2 must hold text"),
        ('{"turns": ["a", 3]}', r"'turns' in .*p\.jsonl:2 must hold text"),
        ('{"prompt": {"a": 1}}', r"'prompt' in .*p\.jsonl:2 must hold text"),
        ('{"prompt": "x", "max_new_tokens": 0}', r"max_new_tokens=0 in .*p\.jsonl:2"),
        ('{"prompt": "x", "max_new_tokens": true}', r"max_new_tokens=True in .*p\.jsonl:2"),
        ('{"prompt": "x", "system": 5}', r"'system' in .*p\.jsonl:2 is 5"),
        ('{"prompt": "x", "max_new_tokens": NaN}', r"max_new_tokens=nan in .*p\.jsonl:2"),
        ('{"prompt": "x", "id": {"a": 1}}', r"the id in .*p\.jsonl:2 is .* but must be text or a number"),
        ('{"prompt": "x", "id": "\\ud83d"}', r"the id in .*p\.jsonl:2 is '.ud83d' but must"),
        ('{"prompt": "x", "category": "\\ud83d"}', r"'category' in .*p\.jsonl:2 is '.ud83d' but must"),
        ('{"prompt": "\\ud83d"}', r"p\.jsonl:2 cannot be asked as text: half of a character"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', r"p\.jsonl:2 cannot be asked as text: tool calls"),
        ('{"question": "x", "choices": ["a"]}', r"'choices' in .*p\.jsonl:2 looks like part of the prompt"),
        ('{"prompt": "x", "id": "p-01"}', r"uses the id 'p-01' more than once"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        load_prompts(path)


def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompts(tmp_path / "missing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompts(tmp_path / "latin.jsonl")
    with pytest.raises(ConfigError, match="holds no prompt"):
        load_prompts(write(tmp_path / "empty.jsonl"))
    path = write(tmp_path / "p.jsonl", {"prompt": "x"})
    with pytest.raises(ConfigError, match="limit=0"):
        load_prompts(path, limit=0)
    with pytest.raises(ConfigError, match="did you mean 'humaneval'"):
        load_prompts(path, layout="human_eval")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"p\.jsonl:1 has no field 'turns'"):
        load_prompts(path, layout="turns")


def test_the_hash_sees_every_change_and_the_order() -> None:
    one = Conversation(id="a", category="c", turns=("x",))
    other = Conversation(id="b", category="c", turns=("x", "y"), system="s", max_new_tokens=5)
    assert workload_hash([one, other]) == workload_hash((one, other))
    hashes = {workload_hash(items) for items in ([], [one], [other], [one, other], [other, one])}
    assert len(hashes) == 5
    assert all(len(workload_hash(load_category(name))) == 64 for name in CATEGORIES[:2])


def test_a_place_on_the_hub_has_four_parts() -> None:
    assert parse_hub("hub:openai/gsm8k@main:test:question") == HubPlace("openai/gsm8k", "main", "test", "question")
    assert parse_hub("hub:a/b:train:text") == HubPlace("a/b", None, "train", "text")
    with pytest.raises(ConfigError, match="must be hub:name:split:field"):
        parse_hub("hub:a/b:train")


class Rows:
    """What `datasets.load_dataset` returns, as far as it is read."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns or {"question": ["one", "two", "three"], "turns": [["a", "b"]]}
        self.column_names = tuple(self._columns)

    def __getitem__(self, field: str) -> list[Any]:
        return self._columns[field]


def install_datasets(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("outrider.data.prompt_rows.importlib.util.find_spec", lambda name: object())


def test_prompts_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, configuration: str | None, *, split: str, trust_remote_code: bool) -> Rows:
        assert trust_remote_code is False
        asked.append((name, configuration, split))
        return Rows()

    install_datasets(monkeypatch, load)
    taken = load_prompts("hub:o/d@main:test:question", limit=2)
    assert [(item.id, item.category, item.turns) for item in taken] == [
        ("o/d@main-01", "o/d@main", ("one",)),
        ("o/d@main-02", "o/d@main", ("two",)),
    ]
    assert load_prompts("hub:o/d:test:turns")[0].turns == ("a", "b")
    assert asked == [("o/d", "main", "test"), ("o/d", None, "test")]
    with pytest.raises(ConfigError, match="has no field 'answer'; it has question, turns"):
        load_prompts("hub:o/d:test:answer")


def test_a_column_of_the_hub_is_read_with_the_rest_of_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(instruction=["Add.", "Say hi."], input=["2 and 3", ""], output=["5", "hi"], id=["x", "y"])
    install_datasets(monkeypatch, lambda *_, **__: rows)
    found = load_prompts("hub:o/d:train:instruction")
    assert [(one.id, one.turns) for one in found] == [("o/d-01", ("Add.\n\n2 and 3",)), ("o/d-02", ("Say hi.",))]
    install_datasets(monkeypatch, lambda *_, **__: Rows(chat=[[{"role": "user", "content": "a"}]], system=["s"]))
    assert [(one.turns, one.system) for one in load_prompts("hub:o/d:train:chat")] == [(("a",), "s")]
    install_datasets(monkeypatch, lambda *_, **__: Rows(question=["Which?"], choices=[["a", "b"]], answer=[0]))
    with pytest.raises(ConfigError, match="'choices' in hub:o/d:train:question row 1 looks like part of the prompt"):
        load_prompts("hub:o/d:train:question")


def test_a_failure_of_the_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    install_datasets(monkeypatch, load)
    with pytest.raises(ConfigError, match=r"cannot be loaded from the hub \(no route\)"):
        load_prompts("hub:o/d:test:question")


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider.data.prompt_rows.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'outrider\[datasets\]'"):
        load_prompts("hub:o/d:test:question")
