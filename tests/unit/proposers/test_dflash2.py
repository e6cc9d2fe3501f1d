"""DFlash-2's drafts against the dense formulas: the selector's walk, the law of drawn tokens, and the contract."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from dense_block import block_states, select
from outrider import ConfigError, DraftLimit, SamplingParams, SessionPlan
from outrider.audit import AuditConfig, audit
from outrider.noise import Stream
from outrider.proposer import Session
from outrider.proposers.dflash import DFlashConfig, DFlashProposer
from outrider.proposers.drafting.block_network import random_checkpoint
from outrider.testing import draw_case, tiny_target
from outrider.testing.contract import CHECKS

TARGET = tiny_target()
SEEDS = pytest.mark.parametrize("seed", [10, 21, 32])
"""10 has a window and kernels of two slots, 21 of three, and scales; 32 a mask embedding and its own output head."""
PROMPT = [1, 2, 3, 4]


def proposer_of(seed: int, ids_K: Tensor | None = None, **settings: Any) -> DFlashProposer:
    return DFlashProposer.of(random_checkpoint(TARGET, seed), DFlashConfig(checkpoint="", **settings), TARGET, ids_K)


def session_of(proposer: DFlashProposer, max_slots: int = 1, noise: Stream = Stream.TARGET) -> Session:
    return proposer.open(SessionPlan(max_slots=max_slots, max_positions=64, noise=noise, device=TARGET.spec.device))


def features_of(proposer: DFlashProposer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(PROMPT), proposer.network.spec.features, generator=generator, dtype=torch.float64)


class Dense:
    """The network by its formulas: `scores(depth, before)` are the selector's, [V]."""

    def __init__(self, seed: int, features_TF: Tensor, root: int, num_slots: int, ids: list[int] | None = None) -> None:
        self.checkpoint = random_checkpoint(TARGET, seed)
        spec, weights, shared = self.checkpoint.spec, self.checkpoint.tensors, TARGET.shared_weights()
        mask_E = weights.get("mask_embedding", shared.embedding_VE[spec.mask_id])
        embedded_ME = torch.stack([shared.embedding_VE[root], *[mask_E] * (num_slots - 1)])
        self.states_ME = block_states(spec, weights, features_TF, embedded_ME)[1:]
        logits_MV = self.states_ME @ weights.get("lm_head.weight", shared.head_VE).T * spec.output_scale
        if spec.softcap:
            logits_MV = spec.softcap * (logits_MV / spec.softcap).tanh()
        hidden = [token for token in range(TARGET.spec.vocab_size) if token not in (ids or range(999))]
        logits_MV[:, [*hidden, spec.mask_id]] = -torch.inf
        self.logits_MV = logits_MV

    def scores(self, depth: int, before: int) -> Tensor:
        top_k = self.checkpoint.spec.selector_top_k
        return select(self.checkpoint.tensors, top_k, self.logits_MV[depth], self.states_ME[depth], before)

    def walk(self, root: int) -> list[int]:
        found = [root]
        for depth in range(len(self.states_ME)):
            found.append(int(self.scores(depth, found[-1]).argmax()))
        return found[1:]


@SEEDS
def test_a_chain_walks_through_the_candidates_from_the_root(seed: int) -> None:
    proposer = proposer_of(seed)
    session = session_of(proposer, 3)
    roots = {2: 9, 0: 17, 1: 30}
    for slot, root in roots.items():
        session.admit(slot, [*PROMPT, root], SamplingParams(), features_of(proposer))
    trees = session.propose([2, 0, 1], [DraftLimit(99, 99), DraftLimit(2, 2), DraftLimit(99, 99)]).trees
    num_slots = proposer.network.spec.block_size
    want = [Dense(seed, features_of(proposer), root, num_slots).walk(root) for root in roots.values()]
    assert [tree.tokens for tree in trees] == [want[0], want[1][:2], want[2]]
    assert len(want[0]) == proposer.spec.max_nodes == num_slots - 1
    best = [
        Dense(seed, features_of(proposer), root, num_slots).logits_MV.argmax(-1).tolist() for root in roots.values()
    ]
    assert want != best  # the selector matters


def test_a_block_may_be_shorter_than_the_kernel() -> None:
    proposer = proposer_of(21, block_size=2)
    assert proposer.network.spec.conv_kernel_size == 3
    session = session_of(proposer)
    session.admit(0, [*PROMPT, 9], SamplingParams(), features_of(proposer))
    found = session.propose([0], [DraftLimit(9, 9)]).trees[0].tokens
    assert found == Dense(21, features_of(proposer), 9, 2).walk(9)


@SEEDS
def test_fewer_columns_have_their_own_candidates(seed: int) -> None:
    ids_K = torch.tensor([1, 4, 5, 8, 9, 13, 20, 27])
    proposer = proposer_of(seed, ids_K)
    session = session_of(proposer)
    session.admit(0, [*PROMPT, 30], SamplingParams(), features_of(proposer))
    found = session.propose([0], [DraftLimit(9, 9)]).trees[0].tokens
    assert found == Dense(seed, features_of(proposer), 30, proposer.block_size, ids_K.tolist()).walk(30)


@SEEDS
def test_a_drawn_chain_states_the_softmax_of_its_scores(seed: int) -> None:
    """Each law is that behind the token drawn before it, and nothing outside of the candidates has a chance."""
    proposer = proposer_of(seed, sampled=True)
    session = session_of(proposer, 40, Stream.DRAFT)
    slots = list(range(40))
    for slot in slots:
        session.admit(slot, [*PROMPT, 9], SamplingParams(temperature=0.7, seed=slot), features_of(proposer))
    draft = session.propose(slots, [DraftLimit(9, 9)] * 40)
    assert draft.probs_BMV is not None
    dense = Dense(seed, features_of(proposer), 9, proposer.block_size)
    for tree, probs_MV in zip(draft.trees, draft.probs_BMV, strict=True):
        for depth, before in enumerate([9, *tree.tokens[:-1]]):
            want_V = (dense.scores(depth, before) / 0.7).softmax(-1)
            assert (probs_MV[depth] - want_V).abs().max() < 1e-6
            assert int((probs_MV[depth] > 0).sum()) <= proposer.network.spec.selector_top_k
    assert len({tuple(tree.tokens) for tree in draft.trees}) > 10


def test_drawn_tokens_have_the_law_that_is_stated() -> None:
    """First tokens of 1,600 drafts; six standard deviations of every count."""
    proposer = proposer_of(10, sampled=True)
    counts = Counter[int]()
    for part in range(4):
        session = session_of(proposer, 400, Stream.DRAFT)
        for slot in range(400):
            sampling = SamplingParams(temperature=1.3, seed=1000 * part + slot)
            session.admit(slot, [*PROMPT, 9], sampling, features_of(proposer))
        counts.update(tree.tokens[0] for tree in session.propose(range(400), [DraftLimit(1, 1)] * 400).trees)
    law_V = (Dense(10, features_of(proposer), 9, proposer.block_size).scores(0, 9) / 1.3).softmax(-1).tolist()
    assert sum(q > 0.02 for q in law_V) > 1
    for token, q in enumerate(law_V):
        assert abs(counts[token] - 1600 * q) <= 6 * (1600 * q * (1 - q)) ** 0.5


@pytest.mark.parametrize(("seed", "sampled"), [(10, True), (21, False), (32, True)])
def test_the_contract_holds(seed: int, sampled: bool) -> None:
    proposer = proposer_of(seed, sampled=sampled)
    case = draw_case(seed, TARGET.spec.vocab_size, TARGET.spec.max_positions)
    for check in CHECKS.values():
        check(TARGET, proposer, case)


def test_an_audit_finds_the_texts_and_the_drafts_lawful() -> None:
    config = AuditConfig(
        verification=("rejection",),
        temperatures=(0.9,),
        processors=("none",),
        batches=(2,),
        num_prompts=2,
        max_new_tokens=24,
        law_tokens=384,
    )
    target = tiny_target(max_positions=128)
    proposer = DFlashProposer.of(random_checkpoint(target, 10), DFlashConfig(checkpoint="", sampled=True), target)
    report = audit(config, target, {"mine": proposer})
    assert report.verdict == "PASS", report.sentence
    [law] = [one for one in report.layers if one.name == "law"]
    assert [one.name.endswith("drafts") for one in law.findings] == [False, True]


def test_what_a_selector_cannot_draft_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens depend on each other, and it drafts chains; leave width out"):
        proposer_of(10, width=2)
    with pytest.raises(ConfigError, match=r"confidence=0.5 needs a network with a confidence head"):
        proposer_of(10, confidence=0.5)
