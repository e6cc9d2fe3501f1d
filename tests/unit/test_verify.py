"""Every rule emits exactly the target's law: the production functions, enumerated over all of their decisions."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.audit.enumerate import (
    RULES,
    Model,
    Text,
    draw_tree,
    fixed_tree,
    law_error,
    mean_accepted,
    random_model,
)
from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.errors import ConfigError
from outrider.noise import Key, Stream, pick, position_key, position_keys
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams, choose, distribution
from outrider.testing import tiny_target
from outrider.verify import (
    VERIFIERS,
    AcceptedPath,
    Chance,
    NoiseChance,
    VerifyInput,
    judge_block,
    reject_tree,
    verifier,
)

EXACT = 1e-12
FEW = settings(max_examples=25, deadline=None)

KINDS = ("dense", "zeros", "one-hot", "equal", "close", "disjoint")


def pair(kind: str, seed: int, vocab_size: int) -> tuple[Model, Model]:
    """A target and a drafter that stand to each other as `kind` says."""
    p, other = random_model(seed, vocab_size), random_model(seed + 1, vocab_size)
    if kind == "zeros":
        return random_model(seed, vocab_size, zeros=0.5), random_model(seed + 1, vocab_size, zeros=0.5)
    if kind == "one-hot":
        return p, random_model(seed + 1, vocab_size, zeros=1.0)
    if kind == "equal":
        return p, p
    if kind == "close":
        return p, lambda text: 0.95 * p(text) + 0.05 * other(text)
    if kind == "disjoint":
        return _only(p, 0), _only(other, 1)
    return p, other


def _only(model: Model, parity: int) -> Model:
    def table(text: Text) -> torch.Tensor:
        kept_V = model(text) * (torch.arange(len(model(text))) % 2 == parity)
        return kept_V / kept_V.sum()

    return table


pairs = st.builds(pair, st.sampled_from(KINDS), st.integers(0, 10**6), st.shared(st.integers(3, 5), key="vocab"))
vocabs = st.shared(st.integers(3, 5), key="vocab")


@st.composite
def trees(draw: st.DrawFn, vocab_size: int = 3, max_nodes: int = 6, max_depth: int = 3) -> Tree:
    """Any tree over a small vocabulary whose siblings differ."""
    tree = Tree([], [])
    for _ in range(draw(st.integers(0, max_nodes))):
        parent = draw(st.integers(-1, len(tree.tokens) - 1))
        token = draw(st.integers(0, vocab_size - 1))
        is_new = (parent, token) not in zip(tree.parents, tree.tokens, strict=True)
        if is_new and (parent < 0 or tree.depths()[parent] < max_depth):
            tree.tokens.append(token)
            tree.parents.append(parent)
    return tree


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@FEW
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS), wide=st.booleans())
def test_sampled_chains_keep_the_law(rule: str, depth: int, seed: int, kind: str, wide: bool) -> None:
    vocab_size = (5 if wide else 3) if depth < 3 else 3
    p, q = pair(kind, seed, vocab_size)
    length = min(depth + 1, 3)
    assert law_error(p, draw_tree(q, (1,) * depth), rule, vocab_size=vocab_size, length=length, num_steps=1) < EXACT


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@pytest.mark.parametrize("widths", [(2,), (3,), (1, 2), (2, 1)])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS))
def test_trees_drawn_without_replacement_keep_the_law(rule: str, widths: Sequence[int], seed: int, kind: str) -> None:
    vocab_size = 4 if len(widths) == 1 else 3
    p, q = pair(kind, seed, vocab_size)
    drafter = draw_tree(q, widths)
    assert law_error(p, drafter, rule, vocab_size=vocab_size, length=len(widths) + 1, num_steps=1) < EXACT


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_a_full_binary_tree_keeps_the_law(rule: str) -> None:
    p, q = pair("dense", 7, 3)
    assert law_error(p, draw_tree(q, (2, 2)), rule, vocab_size=3, length=3, num_steps=1) < EXACT


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@FEW
@given(tree=trees(), seed=st.integers(0, 10**6), zeros=st.sampled_from([0.0, 0.5, 1.0]))
def test_deterministic_trees_keep_the_law(rule: str, tree: Tree, seed: int, zeros: float) -> None:
    p = random_model(seed, 3, zeros=zeros)
    assert law_error(p, fixed_tree(tree), rule, vocab_size=3, length=4, num_steps=1) < EXACT


@FEW
@given(tokens=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 10**6), zeros=st.sampled_from([0.0, 0.6]))
def test_deterministic_chains_keep_the_law_of_block(tokens: list[int], seed: int, zeros: float) -> None:
    p = random_model(seed, 5, zeros=zeros)
    assert law_error(p, fixed_tree(Tree.chain(tokens)), "block", vocab_size=5, length=3, num_steps=1) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("depth", [2, 3])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_law_holds_over_steps_whose_decisions_share_noise(rule: str, depth: int, seed: int) -> None:
    p, q = pair("dense", seed, 2)
    assert law_error(p, draw_tree(q, (1,) * depth), rule, vocab_size=2, length=3, num_steps=2) < EXACT
    p, q = pair("dense", seed, 3)
    assert law_error(p, draw_tree(q, (1,) * 2), rule, vocab_size=3, length=2, num_steps=2) < EXACT


@settings(max_examples=12, deadline=None)
@given(models=pairs, depth=st.integers(1, 2))
def test_block_accepts_at_least_as_much_as_rejection(models: tuple[Model, Model], depth: int) -> None:
    p, q = models
    drafter = draw_tree(q, (1,) * depth)
    assert mean_accepted(p, drafter, "block") >= mean_accepted(p, drafter, "rejection") - EXACT


def test_block_accepts_strictly_more_where_a_weak_start_is_made_good() -> None:
    p, q = pair("dense", 3, 4)
    drafter = draw_tree(q, (1, 1, 1))
    assert mean_accepted(p, drafter, "block") > mean_accepted(p, drafter, "rejection") + 0.01


@FEW
@given(models=pairs)
def test_rejection_accepts_one_minus_total_variation(models: tuple[Model, Model]) -> None:
    p, q = models
    overlap = torch.minimum(p(()), q(())).sum().item()
    assert mean_accepted(p, draw_tree(q, (1,)), "rejection") == pytest.approx(overlap, abs=EXACT)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@FEW
@given(tree=trees(), seed=st.integers(0, 10**6))
def test_deterministic_trees_are_accepted_with_the_probability_of_their_nodes(rule: str, tree: Tree, seed: int) -> None:
    p = random_model(seed, 3)
    texts, reached = [()], [1.0]
    for token, parent in zip(*tree, strict=True):
        reached.append(reached[parent + 1] * p(texts[parent + 1])[token].item())
        texts.append((*texts[parent + 1], token))
    assert mean_accepted(p, fixed_tree(tree), rule) == pytest.approx(sum(reached[1:]), abs=EXACT)


def test_the_worked_example() -> None:
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.8, 0.2], dtype=torch.float64)
    drafter = draw_tree(lambda text: q, (1,))
    assert mean_accepted(lambda text: p, drafter, "rejection") == pytest.approx(0.8 * 0.625 + 0.2)
    assert law_error(lambda text: p, drafter, "rejection", vocab_size=2, length=1) < EXACT


def test_a_drafted_token_without_draft_probability_is_skipped_and_the_law_kept() -> None:
    p = random_model(5, 3)
    q_MV = torch.tensor([[0.0, 0.5, 0.5]] * 2, dtype=torch.float64)
    given_p_MV = torch.stack([p(()), p((0,))])

    class Never(Chance):
        def accept(self, probability: float, position: int, draw: int) -> bool:
            raise AssertionError("a token that q cannot give was put to the test")

        def pick(self, probs_V: torch.Tensor, position: int) -> int:
            assert torch.equal(probs_V, given_p_MV[0])
            return 2

    assert reject_tree(Tree.chain([0]), given_p_MV, q_MV, 0, Never()) == AcceptedPath([], [], 2)
    assert judge_block([0], given_p_MV, torch.zeros_like(q_MV), 0, Never()) == AcceptedPath([], [], 2)


def random_batch(seed: int, num_slots: int = 3, vocab_size: int = 7) -> tuple[Draft, VerifyInput]:
    """Ragged chains with logits and mixed settings."""
    generator = torch.Generator().manual_seed(seed)
    chains = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in range(num_slots)]
    draft = Draft.of_chains(chains)
    logits_BMV = torch.randn(num_slots, draft.num_rows, vocab_size, generator=generator)
    samplings = [SamplingParams(temperature=0.5 * slot, top_k=4, seed=seed + slot) for slot in range(num_slots)]
    return draft, VerifyInput(logits_BMV, [5 + 3 * slot for slot in range(num_slots)], samplings)


@pytest.mark.parametrize("name", VERIFIERS)
@FEW
@given(seed=st.integers(0, 10**6))
def test_a_slot_is_judged_the_same_alone_and_in_a_batch(name: str, seed: int) -> None:
    draft, batch = random_batch(seed)
    together = VERIFIERS[name](draft, batch)
    for slot, path in enumerate(together):
        own = Draft.of_trees([draft.trees[slot]])
        rows_MV = batch.logits_BMV[slot][: own.num_rows]
        for logits in (rows_MV[None], [rows_MV]):
            alone = VERIFIERS[name](own, VerifyInput(logits, [batch.lengths[slot]], [batch.samplings[slot]]))
            assert alone == [path]


@FEW
@given(seed=st.integers(0, 10**6))
def test_coupled_emits_what_plain_decoding_would_choose(seed: int) -> None:
    draft, batch = random_batch(seed)
    for slot, path in enumerate(VERIFIERS["coupled"](draft, batch)):
        rows = [0, *path.rows]
        positions_R = torch.tensor([batch.lengths[slot] + 1 + depth for depth in range(len(rows))])
        own_R = choose(batch.logits_BMV[slot][rows], positions_R, [batch.samplings[slot]] * len(rows))
        assert own_R.tolist() == [*path.tokens, path.bonus]


@pytest.mark.parametrize("name", VERIFIERS)
def test_greedy_decoding_is_every_rule_at_temperature_zero(name: str) -> None:
    logits_BMV = torch.zeros(1, 4, 5)
    for row, token in enumerate([3, 1, 4, 2]):
        logits_BMV[0, row, token] = 1.0
    right, wrong = Draft.of_chains([[3, 1, 4]]), Draft.of_chains([[3, 2, 4]])
    given_logits = VerifyInput(logits_BMV, [9], [SamplingParams()])
    assert VERIFIERS[name](right, given_logits) == [AcceptedPath([1, 2, 3], [3, 1, 4], 2)]
    assert VERIFIERS[name](wrong, given_logits) == [AcceptedPath([1], [3], 1)]


@pytest.mark.parametrize("name", ["coupled", "rejection"])
def test_greedy_decoding_descends_to_a_later_sibling(name: str) -> None:
    logits_BMV = torch.zeros(1, 4, 5)
    logits_BMV[0, 0, 2] = logits_BMV[0, 2, 1] = logits_BMV[0, 3, 4] = 1.0
    draft = Draft.of_trees([Tree([0, 2, 1], [-1, -1, 1])])
    assert VERIFIERS[name](draft, VerifyInput(logits_BMV, [0], [SamplingParams()])) == [AcceptedPath([2, 3], [2, 1], 4)]


@pytest.mark.parametrize("name", ["rejection", "block"])
def test_production_noise_gives_the_law_of_a_sampled_chain(name: str) -> None:
    """The one Monte Carlo here: rule, noise and drafter together, 1500 seeds, chi-square over two tokens."""
    sampling = SamplingParams(temperature=1.0)
    logits_MV = torch.tensor([[0.1, 1.0, -0.5], [0.7, 0.0, 0.2], [-1.0, 0.5, 0.5]])
    guess_V = torch.tensor([0.2, 0.3, 0.5])
    counts_VV = torch.zeros(3, 3, dtype=torch.float64)
    num_seeds = 1500
    for seed in range(num_seeds):
        keys_R2 = position_keys(torch.full((2,), seed), torch.arange(2), Stream.DRAFT)
        chain = pick(guess_V.log().expand(2, 3), keys_R2)
        draft = Draft.of_chains([chain.tolist()], probs_BMV=guess_V.expand(1, 3, 3))
        rows_1MV = torch.stack([logits_MV[0], logits_MV[1], logits_MV[2]])[None]
        given_rows = VerifyInput(rows_1MV, [-1], [SamplingParams(temperature=1.0, seed=seed)])
        (path,) = VERIFIERS[name](draft, given_rows)
        emitted = [*path.tokens, path.bonus]
        if len(emitted) == 1:
            emitted.append(NoiseChance(seed).pick(distribution(logits_MV[1:2], sampling)[0], 1))
        counts_VV[emitted[0], emitted[1]] += 1
    first_V, second_V = distribution(logits_MV[:2], sampling).double()
    expected_VV = num_seeds * first_V[:, None] * second_V
    statistic = ((counts_VV - expected_VV) ** 2 / expected_VV).sum()
    assert torch.special.gammaincc(torch.tensor(4.0).double(), statistic / 2) > 0.01


def test_block_refuses_trees() -> None:
    draft = Draft.of_trees([Tree([1, 2], [-1, -1])])
    with pytest.raises(ConfigError, match="block"):
        VERIFIERS["block"](draft, VerifyInput(torch.zeros(1, 3, 4), [0], [SamplingParams()]))


def test_an_unknown_rule_is_named_with_its_neighbour() -> None:
    assert verifier("block") is VERIFIERS["block"]
    with pytest.raises(ConfigError, match="did you mean 'coupled'"):
        verifier("couple")


@pytest.mark.parametrize("name", ["rejection", "block"])
def test_a_sampling_drafter_never_asks_twice_for_the_same_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block rule judges every drafted token; the next step must draw anew, from a stream that nobody else reads."""
    asked: list[tuple[int, int]] = []

    def recorded(seed: int, position: int, stream: Stream, draw: int) -> Key:
        assert stream == Stream.DRAFT
        asked.append((position, draw))
        return position_key(seed, position, stream, draw)

    monkeypatch.setattr("outrider.sampling.position_key", recorded)
    target = tiny_target(1)
    proposer = load_proposer("draft_model", target, layers="0", num_nodes=3, sampled=True)
    engine = Engine(target, proposer, verification=name)
    engine.generate([[1, 2, 3]], SamplingParams(temperature=1.0, seed=4, max_tokens=40, ignore_eos=True))
    assert len(asked) > 40
    assert len(set(asked)) == len(asked)
