"""DFlash's session against the dense formulas: chains, trees, drawn tokens, limits, pending positions, reuse."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dense_block import block_states
from outrider import Commit, ConfigError, DraftLimit, Engine, SamplingParams, SessionPlan
from outrider.noise import Stream
from outrider.proposer import Reused, Session
from outrider.proposers.dflash import DFlashConfig, DFlashProposer
from outrider.proposers.drafting.block_network import random_checkpoint
from outrider.proposers.drafting.trees import best_nodes
from outrider.testing import assert_lossless, tiny_target

TARGET = tiny_target()
GREEDY = SamplingParams()


def proposer_of(seed: int = 0, **settings: Any) -> DFlashProposer:
    return DFlashProposer.of(random_checkpoint(TARGET, seed), DFlashConfig(checkpoint="", **settings), TARGET)


def session_of(proposer: DFlashProposer, max_slots: int = 1, noise: Stream = Stream.TARGET) -> Session:
    return proposer.open(SessionPlan(max_slots=max_slots, max_positions=64, noise=noise, device=TARGET.spec.device))


def features_of(proposer: DFlashProposer, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, proposer.network.spec.features, generator=generator, dtype=torch.float64)


def dense_probs(seed: int, features_TF: Tensor, root: int) -> Tensor:
    """Probabilities [D, V] of the tokens after the root, by the formulas."""
    checkpoint = random_checkpoint(TARGET, seed)
    spec, shared = checkpoint.spec, TARGET.shared_weights()
    mask_E = checkpoint.tensors.get("mask_embedding", shared.embedding_VE[spec.mask_id])
    embedded_ME = torch.stack([shared.embedding_VE[root], *[mask_E] * (spec.block_size - 1)])
    states_ME = block_states(spec, checkpoint.tensors, features_TF, embedded_ME)[spec.first_slot :]
    logits_MV = states_ME.new_full((len(states_ME), TARGET.spec.vocab_size), -torch.inf)
    logits_MV[:, checkpoint.ids_K] = states_ME @ checkpoint.tensors.get("lm_head.weight", shared.head_VE).T
    logits_MV[:, spec.mask_id] = -torch.inf
    return logits_MV.softmax(-1)


def test_seeds_draw_both_kinds_of_blocks_and_heads() -> None:
    specs = [random_checkpoint(TARGET, seed).spec for seed in range(4)]
    assert {spec.drafts_at_root for spec in specs} == {True, False}
    assert {spec.draft_vocab_size for spec in specs} == {20, 31}


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_is_the_best_token_of_each_slot(seed: int) -> None:
    proposer = proposer_of(seed)
    probs_DV = dense_probs(seed, features_of(proposer, 5), 9)
    for limit in range(1, 1 + proposer.max_depth):
        session = session_of(proposer)
        session.admit(0, [1, 2, 3, 4, 5, 9], GREEDY, features_of(proposer, 5))
        draft = session.propose([0], [DraftLimit(limit, 99)])
        assert draft.trees[0].tokens == probs_DV.argmax(-1).tolist()[:limit]
    assert proposer.spec.max_nodes == len(probs_DV)


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_holds_the_most_probable_paths(seed: int) -> None:
    """Against every path of tokens within the depth, all of whose products are computed."""
    proposer = proposer_of(seed, num_nodes=12, width=6)
    session = session_of(proposer)
    session.admit(0, [1, 2, 9], GREEDY, features_of(proposer, 2))
    tree = session.propose([0], [DraftLimit(12, 3)]).trees[0]
    found = []
    for node, token in enumerate(tree.tokens):
        above = found[tree.parents[node]] if tree.parents[node] >= 0 else ()
        found.append((*above, token))
    probs = dense_probs(seed, features_of(proposer, 2), 9)[:3].tolist()
    worth = {
        path: float(torch.tensor([probs[depth][token] for depth, token in enumerate(path)]).prod())
        for length in (1, 2, 3)
        for path in product(*[sorted(range(31), key=lambda token: -row[token])[:6] for row in probs[:length]])
    }
    assert len(set(found)) == 12
    assert sorted((worth[path] for path in found), reverse=True) == pytest.approx(sorted(worth.values())[:-13:-1])


falling = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4).map(lambda row: sorted(row, reverse=True))


@given(rows=st.lists(falling, min_size=1, max_size=4), count=st.integers(1, 40))
def test_the_heap_pops_what_all_paths_sorted_give(rows: list[list[float]], count: int) -> None:
    logs = [torch.tensor(row, dtype=torch.float64).log().tolist() for row in rows]
    paths = [path for depth in range(1, 1 + len(rows)) for path in product(*[range(len(row)) for row in rows[:depth]])]
    worth = {path: sum(logs[depth][rank] for depth, rank in enumerate(path)) for path in paths}
    found = best_nodes(logs, count)
    assert len(set(found)) == len(found) == min(count, len(paths))
    assert [worth[path] for path in found] == pytest.approx(sorted(worth.values(), reverse=True)[:count])
    for place, path in enumerate(found):  # so a prefix is a tree
        assert path[:-1] == () or path[:-1] in found[:place]


def test_drawn_chains_carry_the_law_of_each_slot() -> None:
    proposer = proposer_of(0, sampled=True)
    session = session_of(proposer, noise=Stream.DRAFT)
    session.admit(0, [1, 2, 9], SamplingParams(temperature=1.0, seed=5), features_of(proposer, 2))
    draft = session.propose([0], [DraftLimit(3, 3)])
    assert draft.probs_BMV is not None
    want_DV = dense_probs(0, features_of(proposer, 2), 9)[:3]
    assert torch.allclose(draft.probs_BMV[0, :3], want_DV, atol=1e-6)
    assert all(want_DV[depth, token] > 0 for depth, token in enumerate(draft.trees[0].tokens))


def test_slots_with_other_limits_and_pending_positions_share_a_pass() -> None:
    proposer = proposer_of(4, num_nodes=6, width=3)
    together = session_of(proposer, 3)
    lengths, limits = (5, 1, 40), (DraftLimit(6, 4), DraftLimit(0, 0), DraftLimit(3, 2))
    texts = [[(slot + 3 * place) % 30 for place in range(length)] for slot, length in enumerate(lengths)]
    for slot, text in enumerate(texts):
        together.admit(slot, text, GREEDY, features_of(proposer, len(text) - 1, slot))
    assert together.num_pending(2) == 39
    found = together.propose([2, 0, 1], [limits[2], limits[0], limits[1]]).trees
    assert found[2].tokens == []
    for slot, tree in ((2, found[0]), (0, found[1])):
        alone = session_of(proposer)
        alone.admit(0, texts[slot], GREEDY, features_of(proposer, lengths[slot] - 1, slot))
        assert alone.propose([0], [limits[slot]]).trees == [tree]
        assert 0 < len(tree.tokens) <= limits[slot].num_nodes
        assert max(tree.depths()) <= limits[slot].max_depth


@pytest.mark.parametrize("caught_up", [False, True])
def test_accepted_rows_become_context_and_drafted_ones_do_not(caught_up: bool) -> None:
    proposer = proposer_of(0, num_nodes=8, width=3)
    features_TF = features_of(proposer, 9)
    session = session_of(proposer)
    session.admit(0, [1, 2, 3], GREEDY, features_TF[:2])
    session.propose([0], [DraftLimit(8, 4)])
    # rows 0, 2 and 5 were committed; the others have features that must not be read
    step_BMF = torch.full((1, 9, proposer.network.spec.features), 7.0, dtype=torch.float64)
    step_BMF[0, [0, 2, 5]] = features_TF[2:5]
    session.observe([Commit(0, [0, 2, 5], [4, 5, 6], 0)], step_BMF)
    assert session.num_pending(0) == 3
    if caught_up:
        session.catch_up([0])
    fresh = session_of(proposer)
    fresh.admit(0, [1, 2, 3, 4, 5, 6], GREEDY, features_TF[:5])
    limits = [DraftLimit(8, 4)]
    assert session.propose([0], limits).trees == fresh.propose([0], limits).trees
    assert session.propose([0], limits).trees == fresh.propose([0], limits).trees  # nothing new was read


@pytest.mark.parametrize("length", [2, 5, 8])
def test_a_known_beginning_is_not_read_again(length: int) -> None:
    """Positions 0 to 3 were read by a draft, 4 to 7 are pending when the text is kept."""
    proposer = proposer_of(3)
    features_TF, other_TF = features_of(proposer, 12), features_of(proposer, 12, seed=1)
    session = session_of(proposer, 2)
    session.admit(0, [1, 2, 3, 4, 5], GREEDY, features_TF[:4])
    session.propose([0], [DraftLimit(3, 3)])
    session.observe([Commit(0, [0, 1, 2, 3], [6, 7, 8, 9], 0)], features_TF[None, 4:8])
    kept = session.keep(0)
    assert kept is not None
    assert kept.num_positions == 8
    text = [*range(1, length + 2), 20, 21]
    session.reuse(1, text, GREEDY, other_TF[length : len(text) - 1], Reused(kept, length))
    fresh = session_of(proposer)
    fresh.admit(0, text, GREEDY, torch.cat([features_TF[:length], other_TF[length : len(text) - 1]]))
    assert session.propose([1], [DraftLimit(3, 3)]).trees == fresh.propose([0], [DraftLimit(3, 3)]).trees


def test_a_shorter_block_drafts_less_and_the_text_stays() -> None:
    proposer = proposer_of(0, block_size=2)
    assert proposer.spec.max_nodes == 1
    assert_lossless(TARGET, proposer, [[1, 2, 3], [4]], SamplingParams(max_tokens=9, ignore_eos=True), max_batch=2)


def test_text_up_to_the_last_position_is_drafted_for() -> None:
    target = tiny_target(max_positions=20)
    proposer = DFlashProposer.of(random_checkpoint(target, 0), DFlashConfig(checkpoint="", width=2), target)
    records: list[Any] = []
    settings = SamplingParams(max_tokens=99, ignore_eos=True)
    answer = Engine(target, proposer, record=records.append).generate([[1, 2, 3]], settings)[0]
    assert len(answer.tokens) == 17


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_nodes": 0}, "num_nodes=0 must be between 1 and 256"),
        ({"width": 33}, "width=33 must be between 1 and 32"),
        ({"block_size": 1}, "block_size=1 must be between 2 and 256"),
        ({"sampled": True, "width": 2}, "sampled=True drafts chains; leave width out"),
        ({"confidence": 1.5}, "confidence=1.5 must be between 0.0 and 1.0"),
        ({"confidence": 0.5, "sampled": True}, "confidence ends greedy chains; leave sampled and width out"),
    ],
)
def test_bad_settings_get_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DFlashConfig(checkpoint="x", **settings)


MARKOV = pytest.mark.parametrize("seed", [6, 20])
"""Seeds with a Markov head and a confidence head; 20 has an output head of its own, for some of the tokens."""
FEATURES_TF = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PROMPT = [1, 2, 3, 4, 9]


def walked(seed: int) -> list[tuple[int, float]]:
    """Walk the block by the formulas: each token, and the confidence before it."""
    checkpoint = random_checkpoint(TARGET, seed)
    spec, weights, shared = checkpoint.spec, checkpoint.tensors, TARGET.shared_weights()
    mask_E = weights.get("mask_embedding", shared.embedding_VE[spec.mask_id])
    embedded_ME = torch.stack([shared.embedding_VE[PROMPT[-1]], *[mask_E] * (spec.block_size - 1)])
    states_ME = block_states(spec, weights, FEATURES_TF, embedded_ME)
    head_KE, ids_K = weights.get("lm_head.weight", shared.head_VE), checkpoint.ids_K
    (sure_X,), (bias,) = weights["confidence_head.proj.weight"], weights["confidence_head.proj.bias"]
    before, found = PROMPT[-1], []
    for state_E in states_ME[spec.first_slot :]:
        row_Q = weights["markov_head.markov_w1.weight"][before]
        sure = (torch.cat([state_E, row_Q]) @ sure_X + bias).sigmoid()
        logits_K = head_KE @ state_E + weights["markov_head.markov_w2.weight"] @ row_Q
        logits_K[ids_K == spec.mask_id] = -torch.inf
        before = int(ids_K[logits_K.argmax()])
        found.append((before, float(sure)))
    return found


@MARKOV
def test_a_markov_head_biases_each_token_by_the_one_before(seed: int) -> None:
    want = walked(seed)
    session = session_of(proposer_of(seed))
    session.admit(0, PROMPT, GREEDY, FEATURES_TF)
    found = session.propose([0], [DraftLimit(9, 9)]).trees[0].tokens
    assert found == [token for token, _ in want]
    if seed == 20:  # the bias matters
        assert found != dense_probs(seed, FEATURES_TF, PROMPT[-1]).argmax(-1).tolist()


@MARKOV
def test_a_chain_ends_where_its_survival_is_too_small(seed: int) -> None:
    want, survival = walked(seed), []
    for _, sure in want:
        survival.append((survival[-1] if survival else 1.0) * sure)
    for length in range(len(want)):
        session = session_of(proposer_of(seed, confidence=min(1.0, survival[length] * 1.0001)), 2)
        for slot in (0, 1):
            session.admit(slot, PROMPT, GREEDY, FEATURES_TF)
        trees = session.propose([1, 0], [DraftLimit(1, 1), DraftLimit(9, 9)]).trees
        assert trees[1].tokens == [token for token, _ in want][:length]
        assert trees[0].tokens == trees[1].tokens[:1]


def test_what_a_markov_head_cannot_draft_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens depend on each other, and it drafts chains; leave width out"):
        proposer_of(6, width=2)
    with pytest.raises(ConfigError, match=r"confidence=0.5 needs a network with a confidence head"):
        proposer_of(0, confidence=0.5)
