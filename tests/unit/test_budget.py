"""What a budget may decide: limits within what can be used, and cuts that leave the law alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import pytest
import torch

from outrider.audit.enumerate import Drafter, EnumeratingChance, Guess, Text, draw_tree, law_error, random_model
from outrider.budget import Budget, ChainBudget, FixedBudget, SlotState
from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.errors import ConfigError
from outrider.metrics import StepRecord
from outrider.proposer import Commit, DraftLimit
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.targets.native import NativeTarget
from outrider.testing import RandomTrees, tiny_target

TARGET, DRAFT = random_model(1, 3), random_model(2, 3)


def state(num_remaining: int = 100, request: int = 1) -> SlotState:
    return SlotState(request, num_remaining, 50, greedy=True)


def test_a_fixed_budget_leaves_the_last_token_to_the_step() -> None:
    limits = FixedBudget(4).limits([state(1), state(2), state(9)])
    assert limits == [DraftLimit(0, 0), DraftLimit(4, 1), DraftLimit(4, 8)]


def test_a_draft_keeps_what_it_is_told_and_no_more() -> None:
    draft = Draft.of_trees([Tree([5, 6, 7, 8], [-1, -1, 1, 2]), Tree([9], [-1])])
    kept = draft.keep([[1, 2], []])
    assert kept.trees == [Tree([6, 7], [-1, 0]), Tree([], [])]
    assert kept.num_nodes == (2, 0)
    assert kept.is_chain
    assert draft.keep([range(4), [0]]) is draft


def test_the_rows_of_probabilities_go_with_their_nodes() -> None:
    probs_BMV = torch.arange(2 * 4 * 3).reshape(2, 4, 3).double()
    draft = Draft.of_trees([Tree([0, 1, 2], [-1, 0, 1]), Tree([1], [-1])], probs_BMV=probs_BMV)
    kept = draft.keep([range(2), []])
    assert kept.probs_BMV is not None
    assert kept.probs_BMV.shape == (2, 3, 3)
    assert torch.equal(kept.probs_BMV[0], probs_BMV[0, :3])
    assert torch.equal(kept.probs_BMV[1, 0], probs_BMV[1, 0])


def cut(drafter: Drafter, size: int) -> Drafter:
    """Always to `size` nodes, more after some texts: known before the draft is drawn."""

    def draft(text: Text, chance: EnumeratingChance) -> Guess:
        guess = drafter(text, chance)
        kept = min(len(guess.tree.tokens), size + sum(text) % 2)
        assert guess.q_MV is not None
        return Guess(guess.tree.keep(range(kept)), guess.q_MV[: kept + 1])

    return draft


def cut_by_token(drafter: Drafter) -> Drafter:
    """To nothing, if the draft begins with token 0."""

    def draft(text: Text, chance: EnumeratingChance) -> Guess:
        guess = drafter(text, chance)
        assert guess.q_MV is not None
        return Guess(Tree([], []), guess.q_MV[:1]) if guess.tree.tokens[0] == 0 else guess

    return draft


@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("size", [0, 1])
def test_a_cut_decided_beforehand_keeps_the_law(rule: str, size: int) -> None:
    drafter = cut(draw_tree(DRAFT, (1, 1)), size)
    assert law_error(TARGET, drafter, rule, vocab_size=3, length=3, num_steps=2) < 1e-12


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_cut_that_looks_at_sampled_tokens_does_not(rule: str) -> None:
    """The negative control: why a budget leaves such drafts whole."""
    drafter = cut_by_token(draw_tree(DRAFT, (1, 1)))
    assert law_error(TARGET, drafter, rule, vocab_size=3, length=2, num_steps=1) > 1e-2


def test_the_coupled_rule_does_not_mind() -> None:
    drafter = cut_by_token(draw_tree(DRAFT, (1, 1)))
    assert law_error(TARGET, drafter, "coupled", vocab_size=3, length=3, num_steps=2) < 1e-12


@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_a_draft_that_follows_from_the_text_may_be_cut_by_its_tokens(rule: str) -> None:
    def draft(text: Text, chance: EnumeratingChance) -> Guess:
        chain = [sum(text) % 3, len(text) % 3]
        return Guess(Tree.chain(chain[: 0 if chain[0] == 0 else 2]), None)

    assert law_error(TARGET, draft, rule, vocab_size=3, length=3, num_steps=2) < 1e-12


@final
class Listening(Budget):
    """Drafts nothing; keeps what it was told."""

    def __init__(self) -> None:
        self.num_waiting: list[int] = []

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        self.num_waiting.append(num_waiting)
        return [DraftLimit(0, 0)] * len(slot_states)

    def prune(self, draft: Draft) -> Draft:
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None: ...

    def reset(self) -> None: ...


def test_the_engine_tells_how_many_requests_wait() -> None:
    budget = Listening()
    Engine(tiny_target(), NoProposer(), budget=budget, max_batch=2).generate(
        [[1, 2]] * 5, SamplingParams(max_tokens=2, ignore_eos=True)
    )
    assert budget.num_waiting == [3, 3, 1, 1, 0, 0]


def test_an_unknown_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown budget 'atuo'; did you mean 'auto'"):
        Engine(tiny_target(), NoProposer(), budget="atuo")  # type: ignore[arg-type]


def test_plain_decoding_needs_no_costs() -> None:
    assert Engine(tiny_target(), NoProposer(), budget="auto").budget == FixedBudget(0)


def test_a_target_that_reads_chains_gets_the_first_child_of_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its texts are those of plain decoding, and the trees of a proposer are drafted to it as chains."""
    target = tiny_target()
    spec = replace(target.spec, drafts="chains")
    monkeypatch.setattr(NativeTarget, "spec", property(lambda self: spec))
    params, prompts = SamplingParams(max_tokens=20), [[1, 2, 3], [4, 5]]
    texts = [answer.tokens for answer in Engine(target, NoProposer()).generate(prompts, params)]
    records: list[object] = []
    engine = Engine(target, RandomTrees(target).proposer(), max_batch=2, record=records.append)
    assert [answer.tokens for answer in engine.generate(prompts, params)] == texts
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert steps
    assert all(step.is_chain for step in steps)
    assert any(step.num_rows > 1 for step in steps)
    engine.reset()


def test_a_chain_of_first_children_is_a_path_from_the_root() -> None:
    budget = ChainBudget(FixedBudget(9))
    draft = Draft.of_trees([Tree([5, 6, 7, 8, 9], [-1, -1, 1, 0, 3]), Tree([], []), Tree([1, 2], [-1, 0])])
    assert budget.prune(draft).trees == [Tree.chain([5, 8, 9]), Tree([], []), Tree.chain([1, 2])]
    chain = Draft.of_chains([[1, 2]])
    assert budget.prune(chain) is chain


def test_kept_beginnings_are_refused_where_a_state_holds_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target()
    spec = replace(target.spec, keeps_prefixes=False)
    monkeypatch.setattr(NativeTarget, "spec", property(lambda self: spec))
    with pytest.raises(ConfigError, match="prefix_cache_bytes=1000 keeps nothing"):
        Engine(target, NoProposer(), prefix_cache_bytes=1000)
    assert Engine(target, NoProposer()).memory.prefix_bytes == 0
