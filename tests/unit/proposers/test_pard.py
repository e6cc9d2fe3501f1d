"""PARD's session: one pass, what stays in the cache, limits, pending tokens; and what a checkpoint must say."""

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
)
from outrider.noise import Stream
from outrider.proposers.draft_model import cut_from
from outrider.proposers.pard import PardConfig, PardProposer, PardSession
from outrider.targets import load_target
from outrider.testing import assert_lossless, tiny_target
from outrider.testing.directory import write_tiny_model

PLAN = {"max_positions": 64, "noise": Stream.TARGET}


def proposer_of(num_nodes: int = 4, sampled: bool = False, layers: str = "0,1") -> PardProposer:
    target = tiny_target()
    config = PardConfig(checkpoint="", num_nodes=num_nodes, sampled=sampled)
    return PardProposer(cut_from(target, layers), 17, config, 0)


def session_of(proposer: PardProposer, max_slots: int = 1) -> PardSession:
    plan = SessionPlan(max_slots=max_slots, device=proposer.model.spec.device, **PLAN)  # type: ignore[arg-type]
    session = proposer.open(plan)
    assert isinstance(session, PardSession)
    return session


def tokens(session: PardSession, *limits: int) -> list[list[int]]:
    draft = session.propose(list(range(len(limits))), [DraftLimit(limit, limit) for limit in limits])
    return [tree.tokens for tree in draft.trees]


def test_a_step_is_one_pass_and_keeps_committed_tokens_only() -> None:
    session = session_of(proposer_of())
    session.admit(0, [1, 2, 3], SamplingParams(), None)
    assert session.num_pending(0) == 3
    session.catch_up([0])
    assert session.num_pending(0) == 1
    assert session.reader.cache.lengths == [2]
    (draft,) = tokens(session, 4)
    assert len(draft) == 4
    assert session.reader.cache.lengths == [3]
    session.observe([Commit(0, [0, 1, 2], [*draft[:2], 9], 0)], None)
    assert session.reader.tokens[0] == [*draft[:2], 9]
    tokens(session, 4)
    assert session.reader.cache.lengths == [6]


def test_a_smaller_room_drafts_the_same_tokens_and_fewer() -> None:
    drafts = []
    for limit in range(5):
        session = session_of(proposer_of())
        session.admit(0, [1, 2, 3], SamplingParams(), None)
        drafts.append(tokens(session, limit)[0])
    assert [len(draft) for draft in drafts] == [0, 1, 2, 3, 4]
    assert all(drafts[4][:limit] == drafts[limit] for limit in range(5))


def test_slots_with_different_rooms_and_backlogs_share_a_pass() -> None:
    texts = ([1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11])
    limits = (3, 0, 4)
    together = session_of(proposer_of(), max_slots=3)
    for slot, text in enumerate(texts):
        together.admit(slot, text[:2], SamplingParams(), None)
        if text[2:]:
            together.observe([Commit(slot, [0], text[2:], 0)], None)
    found = tokens(together, *limits)
    for text, limit, draft in zip(texts, limits, found, strict=True):
        alone = session_of(proposer_of())
        alone.admit(0, text, SamplingParams(), None)
        assert tokens(alone, limit)[0] == draft


def test_a_long_backlog_is_read_in_pieces() -> None:
    text = [(5 * place) % 29 for place in range(40)]
    late = session_of(proposer_of(num_nodes=3))
    late.admit(0, text[:1], SamplingParams(), None)
    for token in text[1:]:
        assert tokens(late, 0) == [[]]
        late.observe([Commit(0, [0], [token], 0)], None)
    early = session_of(proposer_of(num_nodes=3))
    early.admit(0, text, SamplingParams(), None)
    assert tokens(late, 3) == tokens(early, 3)


def test_sampled_drafts_carry_what_they_were_drawn_from() -> None:
    proposer = proposer_of(sampled=True)
    plan = SessionPlan(max_slots=1, max_positions=64, noise=Stream.DRAFT, device=proposer.model.spec.device)
    session = proposer.open(plan)
    session.admit(0, [1, 2, 3], SamplingParams(temperature=1.0, seed=5), None)
    draft = session.propose([0], [DraftLimit(4, 4)])
    assert draft.probs_BMV is not None
    for row, token in enumerate(draft.trees[0].tokens):
        assert draft.probs_BMV[0, row, token] > 0
        assert draft.probs_BMV[0, row, 17] == 0  # the mask
        assert draft.probs_BMV[0, row].sum().item() == pytest.approx(1)


def marked(directory: Path, **keys: object) -> Path:
    write_tiny_model(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | keys))
    return directory


def test_a_published_directory_drafts(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "target")
    target = load_target(str(tmp_path / "target"), dtype="float64")
    marked(tmp_path / "draft", pard_token=255, spd_type="pard")
    drafter = load_proposer("pard", target, checkpoint=str(tmp_path / "draft"), num_nodes=5)
    assert drafter.spec.num_bytes > 0
    assert drafter.spec.max_nodes == 5
    records = []
    assert_lossless(target, drafter, [[1, 2, 3], [40]], SamplingParams(max_tokens=12, ignore_eos=True), max_batch=2)
    Engine(target, drafter, record=records.append).generate([[1, 2, 3]], SamplingParams(max_tokens=12, ignore_eos=True))
    assert len(records) <= 1 + 6  # it is the target: depth 1 is always right


@pytest.mark.parametrize(
    ("keys", "mask_id"),
    [({"pard_token": [255, 255]}, 255), ({"ptd_token_id": 7}, 7), ({"mask_token_id": 3, "pard_token": 9}, 3)],
)
def test_where_the_mask_is_named(tmp_path: Path, keys: dict[str, object], mask_id: int) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "target")), dtype="float64")
    proposer = load_proposer("pard", target, checkpoint=str(marked(tmp_path / "draft", **keys)))
    assert isinstance(proposer, PardProposer)
    assert proposer.mask_id == mask_id


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"names no mask token \(pard_token\) in its config.json; it is a plain draft model"),
        ({"pard_token": [255, 254]}, "names 2 mask tokens; only one for all places"),
        ({"pard_token": 258}, "names mask token 258, which is not one of its 258 tokens"),
        ({"pard_token": "<mask>"}, "names mask token '<mask>', which is not one"),
    ],
)
def test_a_checkpoint_must_name_its_mask(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "target")), dtype="float64")
    with pytest.raises(CheckpointError, match=message):
        load_proposer("pard", target, checkpoint=str(marked(tmp_path / "draft", **keys)))


@pytest.mark.parametrize("num_nodes", [0, 65])
def test_bad_settings_get_one_sentence(num_nodes: int) -> None:
    with pytest.raises(ConfigError, match=f"num_nodes={num_nodes} must be between 1 and 64"):
        PardConfig(checkpoint="x", num_nodes=num_nodes)
