"""The recorded draft of a recurrent head: the same chains as level by level, one copy back a step, few captures."""

import pytest
import torch
from counted_steps import questions

from outrider import verify
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.noise import Stream
from outrider.ops.graphs import GraphPool
from outrider.proposer import Session, SessionPlan
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.proposers.drafting.sampler import ChainSampler
from outrider.proposers.eagle3 import Eagle3Config, Eagle3Proposer
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing import tiny_target
from outrider.testing.copies import HostCopies

CONFIG = Eagle3Config(checkpoint="", num_nodes=3)


def open_session(head, plan: SessionPlan, vocab_size: int, graphs: GraphPool | None) -> Session:
    return RecurrentSession(head, plan, vocab_size=vocab_size, num_nodes=3, depth=3, graphs=graphs)


def drafts_of(
    target: Target, seed: int, graphs: GraphPool | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Draft], list]:
    """Every draft of a small run, and its texts."""
    proposer = Eagle3Proposer(Eagle3Proposer.example(target, seed).head, CONFIG)
    opened = lambda self, plan: open_session(self.head, plan, target.spec.vocab_size, graphs)  # noqa: E731
    monkeypatch.setattr(Eagle3Proposer, "open", opened)
    engine = Engine(target, proposer, max_batch=3)
    drafts: list[Draft] = []
    propose = engine.session.propose

    def spy(slots, limits) -> Draft:
        draft = propose(slots, limits)
        drafts.append(
            Draft.of_tensors(
                draft.tokens_BN.clone(), draft.parents_BN.clone(), draft.num_nodes, is_chain=draft.is_chain
            )
        )
        return draft

    monkeypatch.setattr(engine.session, "propose", spy)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [9], [4, 4], [8, 1, 2, 8, 1, 2]]
    texts = engine.generate(prompts, SamplingParams(max_tokens=18, ignore_eos=True))
    return drafts, [text.tokens for text in texts]


@pytest.mark.parametrize("seed", range(4))
def test_the_loop_drafts_what_the_levels_draft(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target, graphs = tiny_target(seed, max_positions=64), GraphPool("cpu")
    level_by_level, texts = drafts_of(target, seed, None, monkeypatch)
    recorded, same_texts = drafts_of(target, seed, graphs, monkeypatch)
    assert same_texts == texts
    assert [draft.num_nodes for draft in recorded] == [draft.num_nodes for draft in level_by_level]
    assert [draft.trees for draft in recorded] == [draft.trees for draft in level_by_level]
    assert 1 <= graphs.num_captured <= 3  # 1, 2 and 3 slots


def test_a_drafted_step_asks_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verify.VERIFIERS, "coupled", verify._coupled_at_once)
    target = tiny_target(0, max_positions=96)
    proposer = Eagle3Proposer(Eagle3Proposer.example(target, 1).head, CONFIG)
    opened = lambda self, plan: open_session(self.head, plan, target.spec.vocab_size, GraphPool("cpu"))  # noqa: E731
    monkeypatch.setattr(Eagle3Proposer, "open", opened)
    engine = Engine(target, proposer, max_batch=2)
    assert questions(engine, [[1, 2, 3], [4, 5, 6, 7]], max_new_tokens=60, num_steps=4) == ["tolist"] * 4


def test_a_slot_without_a_pair_gets_no_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(0, max_positions=64)
    drafts, _ = drafts_of(target, 2, GraphPool("cpu"), monkeypatch)
    assert 0 in drafts[0].num_nodes
    assert torch.equal(drafts[0].parents_BN[drafts[0].num_nodes.index(0)], torch.tensor([-1, -1, -1]))


def test_even_chains_stay_on_a_gpu() -> None:
    plan = SessionPlan(max_slots=2, max_positions=9, noise=Stream.TARGET, device=torch.device("cuda"))
    chains = ChainSampler(plan, [4, 2], {}, sampled=False, vocab_size=5)
    with HostCopies() as copies:
        for level in range(2):
            chains.take([4, 2], torch.tensor([level, 3]))
        draft = chains.draft()
    assert copies.names == []
    assert [tree.tokens for tree in draft.trees] == [[0, 1], [3, 3]]
