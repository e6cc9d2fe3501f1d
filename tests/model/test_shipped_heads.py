"""The heads in checkpoints/: what they guess may not get worse, the text is the target's, training was one race."""

import json
from pathlib import Path
from typing import Any

import pytest

import outrider
from outrider import Engine, load_proposer, load_target
from outrider.data.contamination import recorded_contamination
from outrider.data.workloads import load_category
from outrider.formats.locate import locate
from outrider.metrics import PrefillRecord, StepRecord, summarize
from outrider.sampling import SamplingParams
from outrider.target import Target

pytestmark = pytest.mark.model

ROOT = Path(outrider.__file__).parents[2] / "checkpoints" / "smollm2-135m"
HEADS = {"eagle3": "eagle3", "mtp": "mtp", "draft": "draft_model", "pard": "pard", "medusa": "medusa"}
FLOORS = {"eagle3": 2.04, "mtp": 1.90, "draft": 1.74, "pard": 1.58, "medusa": 1.51}
"""Tau with three drafted tokens a step, less one accepted token in fifty steps; counts, not seconds. The target runs as
stored, so its text, and hence tau, is the same on every processor."""
NUM_TOKENS = 48


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("smollm2-135m")


def decoded(target: Target, method: str, settings: dict[str, Any]) -> tuple[list[tuple[int, ...]], float]:
    """Answers to a fixed slice of our prompts, one request at a time, and tau."""
    prompts = [load_category(name)[0].turns[0] for name in ("chat", "reasoning", "writing", "code")]
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, load_proposer(method, target, **settings), max_batch=1, max_len=512, record=records.append)
    answers = engine.generate(prompts, SamplingParams(max_tokens=NUM_TOKENS))
    found = summarize([one for one in records if isinstance(one, StepRecord)])
    assert found.tokens_per_target_forward is not None
    return [answer.tokens for answer in answers], found.tokens_per_target_forward


@pytest.fixture(scope="module")
def plain(target: Target) -> list[tuple[int, ...]]:
    return decoded(target, "none", {})[0]


@pytest.mark.parametrize("name", HEADS)
def test_tau_does_not_fall_and_the_text_stays(target: Target, plain: list[tuple[int, ...]], name: str) -> None:
    text, tau = decoded(target, HEADS[name], {"checkpoint": f"smollm2-135m/{name}", "num_nodes": 3})
    assert text == plain
    assert tau >= FLOORS[name], f"tau of {name} is {tau:.3f}"


def test_all_heads_had_the_same_texts_and_tokens_and_none_of_our_prompts() -> None:
    told = [json.loads((locate(f"smollm2-135m/{name}") / "training.json").read_text()) for name in HEADS]
    assert len({(one["data"]["hash"], one["budget"]["tokens"]) for one in told}) == 1
    assert told[0]["data"]["learnt_tokens"] > 2_000_000
    for name in HEADS:
        overlap = recorded_contamination(ROOT / name)
        assert overlap is not None
        assert overlap["prompts"] == []


def test_together_they_are_small() -> None:
    assert sum(file.stat().st_size for file in ROOT.rglob("*") if file.is_file()) < 64_000_000
