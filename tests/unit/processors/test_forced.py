"""Forced tokens: what a form leaves no choice about is the draft of its request, with every method."""

from dataclasses import replace

import pytest
import torch

from outrider.adaptive.controller import AdaptiveBudget
from outrider.budget import FixedBudget, SlotState
from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.metrics import SlotStep, StepRecord, summarize
from outrider.params import SamplingParams, StructuredOutputs
from outrider.proposer import NOTHING, Commit
from outrider.proposers import proposer_class
from outrider.results.steps import record_from_json, record_to_json
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing import TableCosts
from outrider.testing.directory import write_tiny_model

FORM = StructuredOutputs(regex='\\{"first_name": "(Ada|Bob)", "year_of_birth": 1[0-9]{3}\\}')


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    directory = write_tiny_model(tmp_path_factory.mktemp("tiny"), max_positions=160)
    return load_target(str(directory), dtype="float64", device="cpu")


@pytest.mark.parametrize("method", ["none", "ngram", "eagle3"])
def test_forced_tokens_save_steps(target: Target, method: str) -> None:
    records: list[StepRecord] = []
    engine = Engine(target, proposer_class(method).example(target, 2), record=lambda one: _keep(records, one))
    [answer] = engine.generate("x", SamplingParams(max_tokens=80, structured_outputs=FORM))
    forced = [slot for step in records for slot in step.slots if slot.num_forced]
    # one character is one token, and every token is spelled in one way only: none of these is ever wrong
    assert all(slot.num_forced == slot.num_nodes == slot.num_accepted <= 8 for slot in forced)
    free = answer.text.index("Ada") if "Ada" in answer.text else answer.text.index("Bob")
    assert sum(slot.num_forced for slot in forced) >= len(answer.text) - len("A1815") - len(forced)
    assert free == 16
    assert answer.num_forwards <= 1 + 5 + -(-len(answer.text) // 9)
    assert summarize(records).num_accepted_forced_tokens == sum(slot.num_forced for slot in forced)


def _keep(records: list[StepRecord], record: object) -> None:
    if isinstance(record, StepRecord):
        records.append(record)


def test_forced_tokens_leave_room_for_the_limit(target: Target) -> None:
    engine = Engine(target, proposer_class("none").example(target, 0))
    for length in (1, 2, 5, 9):
        [answer] = engine.generate("x", SamplingParams(max_tokens=length, structured_outputs=FORM))
        assert (answer.finished, len(answer.tokens)) == ("length", length)
        assert answer.text == '{"first_name": "'[:length]


def test_chains_take_the_place_of_a_slots_nodes() -> None:
    trees = [Tree([1, 2], [-1, -1]), Tree([3], [-1]), Tree([], [])]
    q_BMV = torch.rand(3, 3, 5, dtype=torch.float64)
    draft = Draft.of_trees(trees, probs_BMV=q_BMV).with_chains({1: [4, 0, 2]})
    assert draft.trees == [trees[0], Tree([4, 0, 2], [-1, 0, 1]), trees[2]]
    assert draft.probs_BMV is not None
    assert torch.equal(draft.probs_BMV[0, :3], q_BMV[0])
    assert draft.probs_BMV[1].argmax(-1)[:3].tolist() == [4, 0, 2]
    assert draft.probs_BMV[1].sum(-1).tolist() == [1, 1, 1, 0]
    assert torch.equal(draft.probs_BMV[2, 0], q_BMV[2, 0])
    assert Draft.of_trees(trees).with_chains({0: [7]}).trees == [Tree([7], [-1]), *trees[1:]]


def test_budgets_give_a_forced_slot_nothing() -> None:
    free = SlotState(request=1, num_remaining=20, context_length=9, greedy=True)
    forced = free._replace(request=2, num_forced=3)
    assert [limit.num_nodes for limit in FixedBudget(4).limits([free, forced])] == [4, 0]
    budget = AdaptiveBudget(TableCosts({1: 1.0, 2: 1.0}), 4)
    for _ in range(8):
        assert budget.limits([free, forced])[1] == NOTHING
        budget.prune(Draft.empty(2))
        budget.observe([Commit(0, [0], [1], 0), Commit(1, [0], [1], 1)], {"propose_s": 0.0, "verify_s": 1.0})


def test_records_keep_forced_tokens() -> None:
    slot = SlotStep(3, 1510, 7, 7, 4, 5, False, num_forced=7)
    record = StepRecord(117, 8, True, (slot, replace(slot, num_forced=0)), 1e-3, 2e-3, 3e-3, 4e-3, 5e-3)
    assert record_from_json(record_to_json(record)) == record


def test_the_tail_has_room_for_forced_tokens(target: Target) -> None:
    assert Engine(target, proposer_class("none").example(target, 0)).memory.cache.tail == 9
    assert Engine(target, proposer_class("ngram").example(target, 0), num_nodes=12).memory.cache.tail == 13
