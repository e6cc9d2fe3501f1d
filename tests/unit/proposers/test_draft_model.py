"""A draft model from a checkpoint, and everything that may not fit the target."""

import json
from pathlib import Path

import pytest

from outrider import (
    CheckpointError,
    Commit,
    ConfigError,
    DraftLimit,
    Engine,
    SamplingParams,
    SessionPlan,
    load_proposer,
    load_target,
)
from outrider.noise import Stream
from outrider.target import Target
from outrider.testing import Oracle, assert_lossless, tiny_target
from outrider.testing.directory import write_tiny_model


@pytest.fixture
def target(tmp_path: Path) -> Target:
    write_tiny_model(tmp_path / "target", seed=0)
    return load_target(str(tmp_path / "target"), dtype="float64")


@pytest.mark.parametrize("settings", [{}, {"width": 2}, {"sampled": True}], ids=["chain", "tree", "sampled"])
def test_any_directory_with_the_same_vocabulary_drafts(
    target: Target, tmp_path: Path, settings: dict[str, object]
) -> None:
    write_tiny_model(tmp_path / "draft", seed=1)
    drafter = load_proposer("draft_model", target, checkpoint=str(tmp_path / "draft"), **settings)
    assert drafter.spec.num_bytes > 0
    assert_lossless(target, drafter, [[1, 2, 3], [40]], SamplingParams(max_tokens=12, ignore_eos=True), max_batch=2)


def test_the_target_drafting_for_itself_is_always_right(target: Target, tmp_path: Path) -> None:
    records = []
    drafter = load_proposer("draft_model", target, checkpoint=str(tmp_path / "target"), num_nodes=3)
    Engine(target, drafter, record=records.append).generate([[1, 2, 3]], SamplingParams(max_tokens=12, ignore_eos=True))
    assert len(records) == 1 + 3


@pytest.mark.parametrize("width", [1, 2])
def test_a_long_backlog_is_read_before_drafting_goes_on(width: int) -> None:
    target = tiny_target()
    text = Oracle(target).continuation([1, 2, 3], SamplingParams(), 30)
    drafter = load_proposer("draft_model", target, layers="0,1", num_nodes=3, width=width)
    plan = SessionPlan(max_slots=1, max_positions=64, noise=Stream.TARGET, device=target.spec.device)
    session = drafter.open(plan)
    session.admit(0, [1, 2, 3], SamplingParams(), None)
    for token in text[:20]:
        assert session.propose([0], [DraftLimit(0, 0)]).num_nodes == (0,)
        session.observe([Commit(0, [0], [token], 0)], None)
    draft = session.propose([0], [DraftLimit(3, 3)])
    assert text[20] in draft.trees[0].tokens
    assert width > 1 or draft.trees[0].tokens == text[20:23]


def test_another_vocabulary_size_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "draft")
    with pytest.raises(CheckpointError, match="has 258 tokens but target tiny-0 has 31"):
        load_proposer("draft_model", tiny_target(), checkpoint=str(tmp_path / "draft"))


def test_other_tokens_under_the_same_ids_are_refused(target: Target, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "draft")
    file = tmp_path / "draft" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"another vocabulary than .*: token 'a' is \d+ there and \d+ here"):
        load_proposer("draft_model", target, checkpoint=str(tmp_path / "draft"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs the setting 'checkpoint', .* write draft_model:checkpoint=DIR .* or draft_model:layers="),
        ({"layers": "0", "checkpoint": "x"}, "takes either checkpoint=PATH or layers=0,1,2"),
        ({"layers": "0,9"}, "layer 9 does not exist; the target has layers 0 to 1"),
        ({"layers": "zero"}, "layers=zero is not a list of numbers"),
        ({"layers": "0", "num_nodes": 0}, "num_nodes=0 must be between 1 and 256"),
        ({"layers": "0", "width": 99}, "width=99 must be between 1 and 32"),
        ({"layers": "0", "width": 2, "sampled": True}, "sampled=True drafts chains"),
    ],
)
def test_bad_settings_get_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_proposer("draft_model", tiny_target(), **settings)
