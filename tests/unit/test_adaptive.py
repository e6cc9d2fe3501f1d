"""The adaptive budget on a simulated machine: hardly slower than plain decoding, and near the best fixed number."""

import pytest
import torch

from outrider.adaptive import AdaptiveBudget
from outrider.budget import Ask, Budget, FixedBudget
from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.metrics import StepRecord
from outrider.proposer import Commit
from outrider.proposers import load_proposer
from outrider.testing import Adversary, Metronome, Simulation, TableCosts, tiny_target
from outrider.testing.simulation import Process, bursts, constant, contrary, drifting, mixed

COSTS = TableCosts({1: 0.0146, 2: 0.0146, 4: 0.0151, 6: 0.0171, 8: 0.0228, 16: 0.0392})
"""Of SmolLM2-135M on two CPU cores: docs/results/forward.txt."""
PROCESSES: dict[str, Process] = {
    "never": constant(0.0),
    "rarely": constant(0.2),
    "often": constant(0.7),
    "bursts": bursts(),
    "drifting": drifting(),
    "mixed": mixed(0.1, 0.85),
    "contrary": contrary,
    "nothing drafted": constant(-1.0),
}


def simulation(process: Process, num_slots: int, share: float, num_tokens: int = 300) -> Simulation:
    """Drafting costs `share` of a plain step; below 5 % it is a lookup, whose cost does not depend on the nodes."""
    return Simulation(
        process=process,
        costs=COSTS,
        draft_s=share * COSTS.forward_s(num_slots, num_slots, 0),
        further=0.25 if share > 0.05 else 0.0,
        num_slots=num_slots,
        num_tokens=num_tokens * num_slots,
    )


def speedup(case: Simulation, budget: Budget) -> float:
    return case.run(budget).tokens_per_s / case.run(FixedBudget(0)).tokens_per_s


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("num_slots", [1, 4, 16])
@pytest.mark.parametrize("name", PROCESSES)
def test_it_does_no_harm(name: str, num_slots: int, share: float) -> None:
    case = simulation(PROCESSES[name], num_slots, share, num_tokens=300 if num_slots < 16 else 200)
    assert speedup(case, AdaptiveBudget(COSTS, 8)) >= 0.97


@pytest.mark.parametrize(
    ("name", "num_slots", "share", "least"),
    [
        ("often", 1, 0.01, 0.88),
        ("often", 1, 0.1, 0.88),
        ("often", 4, 0.01, 1.0),
        ("bursts", 1, 0.01, 0.95),
        ("bursts", 4, 0.01, 1.05),
        ("mixed", 1, 0.4, 1.05),
        ("drifting", 1, 0.1, 0.85),
    ],
)
def test_it_is_near_the_best_fixed_number_or_better(name: str, num_slots: int, share: float, least: float) -> None:
    case = simulation(PROCESSES[name], num_slots, share, num_tokens=800 // num_slots)
    best = max(speedup(case, FixedBudget(count)) for count in (0, 1, 2, 4, 8))
    assert speedup(case, AdaptiveBudget(COSTS, 8)) >= least * best


def test_its_decisions_are_a_function_of_costs_seconds_and_texts() -> None:
    case = simulation(bursts(), 4, 0.1)
    assert case.run(AdaptiveBudget(COSTS, 8)) == case.run(AdaptiveBudget(COSTS, 8))


def test_a_proposer_that_never_pays_is_asked_rarely() -> None:
    """One probe per (loss of a probe / 0.7 %) steps."""
    case = simulation(constant(0.0), 1, 1.0, num_tokens=600)
    assert case.run(AdaptiveBudget(COSTS, 8)).num_verified <= 2 + 600 * 0.007 / 0.9 + 2


def measured(budget: AdaptiveBudget, asks: list[Ask], propose_s: float, steps: int = 8) -> None:
    """Steps whose drafts, if any, are wrong."""
    for _ in range(steps):
        rooms = budget.rooms(asks)
        budget.cut(Draft.of_trees([Tree.chain([0] * min(room)) for room in rooms]))
        commits = [Commit(place, [0], [1], place) for place in range(len(asks))]
        budget.observe(commits, {"propose_s": propose_s if max(rooms).num_nodes else 0.0})


def test_a_cheap_proposer_always_drafts_and_is_cut() -> None:
    budget, asks = AdaptiveBudget(COSTS, 8), [Ask(place, 100, 50, greedy=True) for place in range(4)]
    measured(budget, asks, propose_s=0.0001, steps=30)
    assert [room.num_nodes for room in budget.rooms(asks)] == [8] * 4
    assert budget.cut(Draft.of_chains([[0] * 8] * 4)).num_nodes == (0,) * 4


def test_a_sampled_draft_is_never_cut() -> None:
    budget, asks = AdaptiveBudget(COSTS, 8), [Ask(1, 100, 50, greedy=False)]
    measured(budget, asks, propose_s=0.0001)
    budget.rooms(asks)
    draft = Draft.of_chains([[0] * 8], probs_BMV=torch.full((1, 9, 2), 0.5))
    assert budget.cut(draft) is draft
    budget.observe([Commit(0, [0], [1], 0)], {"propose_s": 0.0001})
    assert max(budget.rooms(asks)).num_nodes < 8  # from now on the room alone decides


def test_the_shape_of_trees_is_learnt() -> None:
    budget, asks = AdaptiveBudget(TableCosts({1: 1.0, 16: 1.0}), 4), [Ask(1, 100, 50, greedy=True)]
    for _ in range(40):
        room = budget.rooms(asks)[0]
        nodes = min(room.num_nodes, 4)
        budget.cut(Draft.of_trees([Tree([0, 1, 2, 3][:nodes], [-1, -1, 1, -1][:nodes])]))
        budget.observe([Commit(0, [0], [1, 2, 9], 0)], {"propose_s": 0.1 if nodes else 0.0})
    assert budget.rooms(asks)[0].num_nodes >= 3
    assert budget._widest == (-1, -1, 1)[: len(budget._widest)] or budget._widest == (-1, -1, 1, -1)


def test_in_the_engine_a_useless_drafter_is_left_alone() -> None:
    target = tiny_target(max_positions=256)
    steps: list[StepRecord] = []
    budget = Metronome(AdaptiveBudget(TableCosts({1: 1.0, 2: 1.1}), 4), [0.5])
    engine = Engine(
        target,
        Adversary(target).proposer(),
        budget=budget,
        record=lambda record: steps.append(record) if isinstance(record, StepRecord) else None,
    )
    engine.generate([[1, 2, 3]], max_new_tokens=100, ignore_eos=True)
    assert sum(slot.num_nodes for step in steps for slot in step.slots) <= 6
    engine.reset()
    assert engine.generate([[1, 2, 3]], max_new_tokens=5)[0].tokens


def test_a_named_budget_is_calibrated_for_the_target() -> None:
    target = tiny_target()
    engine = Engine(target, load_proposer("ngram", target), budget="auto")
    assert isinstance(engine.budget, AdaptiveBudget)
    assert engine.budget.costs.forward_s(1, 1, 50) > 0
    plain = Engine(target, load_proposer("ngram", target))
    prompt = [1, 2, 3, 1, 2, 3]
    assert engine.generate([prompt], max_new_tokens=40) == plain.generate([prompt], max_new_tokens=40)
