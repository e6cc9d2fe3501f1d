"""Every part of a prompt is asked, whatever the published layout; what would be lost is refused with its line."""

from typing import Any

import pytest

from outrider.data.prompt_layouts import PromptRow, is_beside_a_request, read_prompt
from outrider.errors import ConfigError


def row(fields: dict[str, Any]) -> PromptRow:
    return PromptRow("set.jsonl:7", 7, fields)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ALPACA = "Below is an instruction.\n\n### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:\n5"
LONG = "A passage that is long enough to be found wherever it stands."
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[str, ...], str | None]] = {
    "mt-bench": ({"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["x"]}, ("a", "b"), None),
    "mt-bench on the hub": ({"prompt": ["a", "b"], "category": "c", "reference": [], "prompt_id": 3}, ("a", "b"), None),
    "spec-bench": ({"question_id": 241, "category": "summarization", "turns": ["a"], "reference": ["x"]}, ("a",), None),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "x", "test": "t", "entry_point": "f"},
        ("def f():",),
        None,
    ),
    "gsm8k": ({"question": "How many?", "answer": "#### 3"}, ("How many?",), None),
    "math-500": (
        {"problem": "p", "solution": "s", "answer": "1", "subject": "Algebra", "level": 2, "unique_id": "t/1"},
        ("p",),
        None,
    ),
    "mbpp": (
        {"task_id": 1, "text": "Write it.", "code": "def f", "test_list": ["assert f"], "test_setup_code": ""},
        ("Write it.",),
        None,
    ),
    "alpaca": ({"instruction": "Add.", "input": "2 and 3", "output": "5"}, ("Add.\n\n2 and 3",), None),
    "alpaca without input": ({"instruction": "Say hi.", "input": "", "output": "hi"}, ("Say hi.",), None),
    "alpaca with its rendering": (
        {"instruction": "Add.", "input": "2 and 3", "output": "5", "text": ALPACA},
        ("Add.\n\n2 and 3",),
        None,
    ),
    "alpaca with history": (
        {"instruction": "c", "input": "d", "output": "x", "system": "s", "history": [["a", "x"], ["b", "x"]]},
        ("a", "b", "c\n\nd"),
        "s",
    ),
    "only an input": ({"instruction": "", "input": "a", "output": "x"}, ("a",), None),
    "a list of inputs and targets": ({"inputs": "a", "targets": "x"}, ("a",), None),
    "dolly": (
        {"instruction": "Who?", "context": "It was Ann.", "response": "Ann", "category": "qa"},
        ("Who?\n\nIt was Ann.",),
        None,
    ),
    "squad": (
        {"id": "5", "title": "T", "context": "Ann ran.", "question": "Who?", "answers": {"text": ["Ann"]}},
        ("Who?\n\nAnn ran.",),
        None,
    ),
    "orca": ({"id": "n.1", "system_prompt": "s", "question": "q", "response": "x"}, ("q",), "s"),
    "orca without system": ({"system_prompt": "", "question": "q", "response": "x"}, ("q",), None),
    "sharegpt": (
        {"id": "x", "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}]},
        ("a",),
        "s",
    ),
    "sharegpt, greeted": (
        {"conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "a"}, {"from": "gpt"}]},
        ("a",),
        None,
    ),
    "a served log": (
        {"conversation": [user("a"), said("assistant", "x")], "model": "m", "turn": 1, "redacted": False},
        ("a",),
        None,
    ),
    "ultrachat": (
        {"prompt": "a", "prompt_id": "i", "messages": [user("a"), said("assistant", "x"), user("b")]},
        ("a", "b"),
        None,
    ),
    "preferences": ({"prompt": "a", "chosen": [user("a")], "rejected": [user("a")]}, ("a",), None),
    "arena-hard": ({"question_id": "q", "cluster": "k", "turns": [{"content": "a"}]}, ("a",), None),
    "parts": ({"messages": [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]}, ("a\nb",), None),
    "prompt as messages": ({"prompt": [said("developer", "s"), user("a")]}, ("a",), "s"),
    "math data": ({"data": "a", "solution": "x", "answer": "1"}, ("a",), None),
    "query and passages": ({"query": "Who?", "passages": ["one", "two"]}, ("Who?\n\none\n\ntwo",), None),
    "titled documents": (
        {"question": "Who?", "documents": [{"title": "T", "text": "one"}, {"text": "two"}]},
        ("Who?\n\nT\none\n\ntwo",),
        None,
    ),
    "long-context": (
        {"input": "Who?", "context": "text", "answers": ["x"], "all_classes": None},
        ("Who?\n\ntext",),
        None,
    ),
    "our own": ({"id": "chat-01", "category": "chat", "turns": ["a"], "max_new_tokens": 9, "system": "s"}, ("a",), "s"),
    "our shards": (
        {
            "prompt_hash": "0f",
            "num_texts": 1,
            "messages": [user("a")],
            "answers": [{"seed": 1}],
            "origin": {"number": 3},
        },
        ("a",),
        None,
    ),
    "a context that is asked already": (
        {"turns": [f"Read.\n{LONG}\nWho?"], "context": LONG},
        (f"Read.\n{LONG}\nWho?",),
        None,
    ),
    "a context that only seems so": ({"question": "Is 4 or 5 even?", "input": "4"}, ("Is 4 or 5 even?\n\n4",), None),
    "empty turns at the end": ({"messages": [user("a"), said("assistant", "x"), user(" ")]}, ("a",), None),
    "an empty system message": ({"prompt": "a", "system": ""}, ("a",), ""),
    "the same system message twice": ({"messages": [said("system", "s"), user("a")], "system": "s"}, ("a",), "s"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_is_asked_whole(name: str) -> None:
    fields, turns, system = PUBLISHED[name]
    found = read_prompt(row(fields))
    assert (found.turns, found.system, found.fault) == (turns, system, None)


REFUSED = [
    ({"answer": "a"}, r"set\.jsonl:7 has none of messages, turns and prompt.* it has answer"),
    ({}, "it has nothing"),
    ({str(number): 1 for number in range(20)}, r"it has 0, 1, .*, \.\.\.; rename"),
    ({"prompt": 3}, r"'prompt' in set\.jsonl:7 must hold text"),
    ({"prompt": None}, r"'prompt' in set\.jsonl:7 must hold text"),
    ({"turns": ["a", 3]}, r"'turns' in set\.jsonl:7 must hold text"),
    ({"messages": ["a"]}, r"a message in set\.jsonl:7 is not of the form"),
    ({"messages": [{"content": "a"}]}, "is not of the form"),
    ({"messages": [user({"a": 1})]}, "is not of the form"),
    ({"messages": [user([{"type": "text"}])]}, "is not of the form"),
    ({"messages": [said("narrator", "a")]}, "has the role 'narrator'"),
    ({"data": ["a", "b"]}, "does not say who speaks"),
    ({"question": "Which?", "choices": ["a", "b"], "answer": 0}, r"'choices' in set\.jsonl:7 looks like part of"),
    ({"question": "Which?", "options": {"A": "a"}}, "'options' in"),
    ({"prompt": "a", "Context": "b"}, "'Context' in"),
    ({"messages": [user("a")], "tools": [{"name": "f"}]}, "'tools' in"),
    ({"instruction": "Do it.", "instances": [{"input": "x"}]}, "'instances' in"),
    ({"instruction": "Fix it.", "code": "x = 1", "output": "y"}, "'code' in"),
    ({"prompt": "a", "question": "b"}, "holds both 'prompt' and 'question', and they differ"),
    ({"instruction": "Add.", "text": "Add. Then divide."}, "holds both 'instruction' and 'text'|holds both 'text'"),
    ({"question": "Who?", "context": {"sentences": [["a"]]}}, "'context' in .* is not text or a list of texts"),
    ({"question": "Who?", "passages": [{"title": 3, "text": "a"}]}, "'passages' in"),
    ({"prompt": "a", "system": 5}, "'system' in .* is 5 but must be text"),
    ({"messages": [said("system", "s"), user("a")], "system": "t"}, "two system messages that differ"),
    ({"instruction": "a", "history": ["b", "x"]}, "'history' in .* pairs or of messages"),
    ({"instruction": "a", "history": [["b", 3], [4, "x"]]}, "'history' in"),
    ({"instruction": "a", "history": [said("system", "b")]}, "'history' in"),
]


@pytest.mark.parametrize(("fields", "says"), REFUSED)
def test_what_would_be_lost_is_refused_with_its_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_prompt(row(fields))


FAULTS = [
    ({"messages": []}, "empty"),
    ({"conversations": []}, "empty"),
    ({"prompt": "  "}, "empty"),
    ({"messages": [said("assistant", "x")]}, "empty"),
    ({"messages": [user(None)]}, "empty"),
    ({"turns": ["a", " ", "b"]}, "an empty turn before others"),
    ({"messages": [user("a"), said("tool", "x")]}, "tool calls or images"),
    (
        {"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
        "tool calls or images",
    ),
    (
        {"messages": [user([{"type": "image_url", "image_url": "u"}, {"type": "text", "text": "a"}])]},
        "tool calls or images",
    ),
    ({"messages": [user("a"), said("system", "s"), user("b")]}, "a system message after the user's"),
    ({"prompt": "half \ud83d"}, "half of a character (a lone surrogate)"),
    ({"prompt": "a", "system": "\udc00"}, "half of a character (a lone surrogate)"),
]


@pytest.mark.parametrize(("fields", "fault"), FAULTS)
def test_what_cannot_be_asked_as_text_has_a_fault(fields: dict[str, Any], fault: str) -> None:
    found = read_prompt(row(fields))
    assert (found.turns, found.fault) == ((), fault)


def test_earlier_messages_are_turns_of_their_own() -> None:
    fields = {"chat_history": [user("a"), said("assistant", "x")], "question": "b"}
    assert read_prompt(row(fields)).turns == ("a", "b")


def test_a_column_beside_a_request_is_known() -> None:
    names = ["input", "context", "system", "history", "choices", "answer", "question", "id", "source", "prompt_id"]
    assert [is_beside_a_request(name) for name in names] == [True] * 5 + [False] * 5
