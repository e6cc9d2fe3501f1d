"""Prompts of the benchmark in training texts are found, kept with the checkpoint, and told by the benchmark."""

import json
from pathlib import Path
from typing import Any

import torch

from outrider.bench.methods import contamination_note, contamination_of
from outrider.data.contamination import find_contamination, recorded_contamination
from outrider.data.texts import Example, ListedTexts
from outrider.data.workloads import CATEGORIES, load_category
from outrider.proposers.method_spec import MethodSpec

PROMPT = load_category("reasoning")[0]


class Characters:
    """A tokenizer of characters."""

    def batch_decode(self, texts: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(map(chr, text)) for text in texts]


def listed(*texts: str) -> ListedTexts:
    return ListedTexts([Example(torch.tensor([ord(c) for c in text]), torch.ones(len(text)).bool()) for text in texts])


def test_a_copied_prompt_is_found_whatever_stands_around_it() -> None:
    found = find_contamination(listed("nothing of interest", f"user: {PROMPT.turns[0].upper()} -- ok"), Characters())
    assert found["prompts"] == [PROMPT.id]
    assert found["num_prompts"] == sum(len(load_category(name)) for name in CATEGORIES)
    assert found["share"] == 1 / found["num_prompts"]


def test_other_texts_are_clean() -> None:
    assert (
        find_contamination(listed("a text of quite other words that nobody has asked a model about"), Characters())[
            "prompts"
        ]
        == []
    )


def test_the_record_is_read_back_where_there_is_one(tmp_path: Path) -> None:
    assert recorded_contamination(tmp_path) is None
    (tmp_path / "training.json").write_text(json.dumps({"overlap": None}))
    assert recorded_contamination(tmp_path) is None
    overlap: dict[str, Any] = {"share": 0.5, "num_prompts": 2, "prompts": ["x"], "words": 13}
    (tmp_path / "training.json").write_text(json.dumps({"overlap": overlap}))
    assert recorded_contamination(tmp_path) == overlap


def test_the_benchmark_says_so(tmp_path: Path) -> None:
    overlap = {"share": 0.5, "num_prompts": 2, "prompts": ["x"], "words": 13}
    (tmp_path / "training.json").write_text(json.dumps({"overlap": overlap}))
    choices = [MethodSpec("eagle3", "eagle3", {"checkpoint": str(tmp_path)}), MethodSpec("ngram", "ngram", {})]
    assert contamination_of(choices) == {"eagle3": overlap}
    assert contamination_note("eagle3", overlap) == (
        "eagle3: 1 of the benchmark's 2 prompts stand in its training texts, so its figures are too good"
    )
    clean = {**overlap, "prompts": []}
    assert contamination_note("mtp", clean) == "mtp: none of the benchmark's 2 prompts stands in its training texts"
