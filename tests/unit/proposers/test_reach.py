"""A drafter with a shorter context than its target drafts up to its end, and the text stays the target's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outrider import Engine, Proposer, load_proposer, load_target
from outrider.batch import Event
from outrider.metrics import PrefillRecord, StepRecord
from outrider.models.rope import reach
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.proposers.eagle3 import Eagle3Config, Eagle3Proposer, head_of, random_checkpoint
from outrider.proposers.mtp import MtpConfig, MtpProposer
from outrider.proposers.mtp import random_checkpoint as random_modules
from outrider.proposers.none import NoProposer
from outrider.proposers.reach import ReachSession
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing import tiny_spec, tiny_target
from outrider.testing.directory import write_tiny_model

REACH = 24
DYNAMIC = RopeSpec(type="dynamic", factor=2.0, original_max_position_embeddings=REACH)


def short(layer: DecoderSpec, rope: RopeSpec | None = None) -> DecoderSpec:
    return replace(layer, max_position_embeddings=REACH, rope=rope or layer.rope)


def eagle3(target: Target, rope: RopeSpec | None = None, **settings: object) -> Proposer:
    checkpoint = random_checkpoint(target, 0)
    spec = replace(checkpoint.spec, layer=short(checkpoint.spec.layer, rope))
    config = Eagle3Config(checkpoint="", **settings)  # type: ignore[arg-type]
    return Eagle3Proposer(head_of(replace(checkpoint, spec=spec), target), config)


def mtp(target: Target, num_modules: int, rope: RopeSpec | None = None) -> Proposer:
    checkpoint = random_modules(target, num_modules, "residual", 0)
    config = MtpConfig(checkpoint="", num_nodes=num_modules if num_modules > 1 else 3)
    return MtpProposer(target, replace(checkpoint, spec=short(checkpoint.spec, rope)), config)


def draft(target: Target, directory: Path, name: str, **settings: object) -> Proposer:
    """The target itself, drafting for itself within its first positions: every guess is right."""
    config = json.loads((directory / "config.json").read_text()) | {"max_position_embeddings": REACH, "pard_token": 255}
    (directory / "config.json").write_text(json.dumps(config))
    return load_proposer(name, target, checkpoint=str(directory), **settings)


def check(target: Target, proposer: Proposer, prompts: Sequence[Sequence[int]]) -> list[StepRecord]:
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, proposer, max_batch=2, record=records.append)
    plain = Engine(target, NoProposer(), max_batch=2)
    want = plain.generate(prompts, SamplingParams(max_tokens=40, ignore_eos=True))
    got = engine.generate(prompts, SamplingParams(max_tokens=40, ignore_eos=True))
    assert [one.tokens for one in got] == [one.tokens for one in want]
    return [record for record in records if isinstance(record, StepRecord)]


def depths(steps: Sequence[StepRecord], prompt: int) -> list[tuple[int, int]]:
    """Of each step of a single request: the text's length, and how deep its draft was."""
    found, length = [], prompt
    for step in steps:
        [slot] = step.slots
        found.append((length, slot.draft_depth))
        length += slot.num_emitted
    return found


PROMPTS = [[5, 7, 9], list(range(1, 22)), list(range(1, 27))]
"""One far within the reach, one that comes to it at once, and one behind it."""


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
@pytest.mark.parametrize("settings", [{}, {"width": 2, "num_nodes": 6, "depth": 3}, {"sampled": True}])
def test_an_eagle3_head_drafts_as_far_as_it_reaches(rope: RopeSpec | None, settings: dict[str, object]) -> None:
    target = tiny_target(spec=tiny_spec(max_positions=96))
    steps = check(target, eagle3(target, rope, **settings), PROMPTS)
    assert any(slot.draft_depth for step in steps for slot in step.slots)
    single = depths(check(target, eagle3(target, rope, **settings), PROMPTS[:1]), 3)
    assert all(depth <= max(0, REACH - length) for length, depth in single)
    assert any(depth for _, depth in single)


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
@pytest.mark.parametrize("num_modules", [1, 2])
def test_prediction_modules_draft_as_far_as_they_reach(num_modules: int, rope: RopeSpec | None) -> None:
    target = tiny_target(spec=tiny_spec(max_positions=96))
    single = depths(check(target, mtp(target, num_modules, rope), PROMPTS[:1]), 3)
    assert all(depth <= max(0, REACH - length) for length, depth in single)
    assert any(depth for _, depth in single)
    check(target, mtp(target, num_modules, rope), PROMPTS)


@pytest.mark.parametrize("settings", [{}, {"width": 2, "num_nodes": 6}, {"sampled": True}])
def test_a_draft_model_drafts_as_far_as_it_reaches(tmp_path: Path, settings: dict[str, object]) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "target")), dtype="float64")
    proposer = draft(target, write_tiny_model(tmp_path / "draft"), "draft_model", **settings)
    check(target, proposer, PROMPTS)
    single = depths(check(target, proposer, PROMPTS[:1]), 3)
    assert all(depth <= max(0, REACH - length) for length, depth in single)
    assert single[-1][0] > REACH
    if not settings:
        assert single[0] == (3, 4), "a model drafts for itself without a fault"
        assert all(depth == min(4, max(0, REACH - length)) or length > REACH for length, depth in single)


def test_a_mask_model_drafts_as_far_as_it_reaches(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "target")), dtype="float64")
    proposer = draft(target, write_tiny_model(tmp_path / "draft"), "pard")
    check(target, proposer, PROMPTS)
    single = depths(check(target, proposer, PROMPTS[:1]), 3)
    assert all(depth == min(8, max(0, REACH - length)) for length, depth in single)


def test_under_the_ratio_tests_slots_behind_the_reach_have_no_probabilities(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "target")), dtype="float64")
    proposer = draft(target, write_tiny_model(tmp_path / "draft"), "draft_model", sampled=True)
    engine = Engine(target, proposer, max_batch=3, verification="rejection")
    events: list[Event] = list(engine.stream(PROMPTS, SamplingParams(max_tokens=20, ignore_eos=True)))
    assert sum(len(event.tokens) for event in events) == 60


def test_state_is_let_go_behind_the_reach(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "target")), dtype="float64")
    engine = Engine(target, draft(target, write_tiny_model(tmp_path / "draft"), "draft_model"), max_batch=2)
    assert isinstance(engine.session, ReachSession)
    assert (
        engine.session.num_bytes < Engine(target, load_proposer("draft_model", target, layers="0,1")).session.num_bytes
    )
    for prompt in PROMPTS[:2]:
        engine.add(prompt, SamplingParams(max_tokens=60, ignore_eos=True))
    for _ in range(45):
        engine.admit()
        engine.step()
        lengths = dict(engine.session.lengths)
        assert all(length < REACH for length in lengths.values())
    assert not lengths
    assert [engine.session.num_pending(slot) for slot in (0, 1)] == [0, 0]
    engine.session.catch_up([0, 1])
    engine.reset()


def test_how_far_scalings_reach() -> None:
    yarn = RopeSpec(type="yarn", factor=4.0, original_max_position_embeddings=64)
    assert reach(tiny_spec(max_position_embeddings=64, rope=yarn)) == 256
    assert reach(tiny_spec(max_position_embeddings=512, rope=yarn)) == 512
    assert reach(tiny_spec(max_position_embeddings=64, rope=DYNAMIC)) == 64


def test_the_target_is_unchanged_by_a_drafter_that_reads_two_positions() -> None:
    target = tiny_target(spec=tiny_spec(max_positions=96))
    checkpoint = random_checkpoint(target, 0)
    layer = replace(checkpoint.spec.layer, max_position_embeddings=2)
    head = head_of(replace(checkpoint, spec=replace(checkpoint.spec, layer=layer)), target)
    check(target, Eagle3Proposer(head, Eagle3Config(checkpoint="")), [[5], [5, 7], [5, 7, 9]])
    assert torch.is_tensor(head.embedding_VE)
