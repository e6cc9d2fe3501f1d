"""The adaptive budget on a simulated machine: hardly slower than plain decoding, and near the best fixed number."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any, final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.adaptive import controller as adaptive
from outrider.adaptive import drift
from outrider.adaptive.config import AdaptiveConfig
from outrider.adaptive.controller import AdaptiveBudget
from outrider.adaptive.probes import MOST_LOST, NOT_NOW, NUM_PROBES
from outrider.adaptive.selection import Selection, choose
from outrider.budget import Budget, FixedBudget, SlotState
from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.metrics import StepRecord
from outrider.proposer import Commit, DraftLimit
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams
from outrider.testing import Adversary, Metronome, Simulation, TableCosts, tiny_target
from outrider.testing.simulation import Process, bursts, constant, contrary, drifting, mixed, one_copies, switching

COSTS = TableCosts({1: 0.0146, 2: 0.0146, 4: 0.0151, 6: 0.0171, 8: 0.0228, 16: 0.0392}, judge=0.00003)
"""Of SmolLM2-135M on two CPU cores: dev/LOG.md, 23 November."""
PROCESSES: dict[str, Process] = {
    "never": constant(0.0),
    "rarely": constant(0.2),
    "often": constant(0.7),
    "bursts": bursts(),
    "drifting": drifting(),
    "mixed": mixed(0.1, 0.85),
    "contrary": contrary,
    "nothing drafted": constant(-1.0),
    "always": constant(0.97),
    "one copies": one_copies(),
    "switching": switching(),
}
POOLED = ("never", "rarely", "often", "bursts", "drifting", "mixed", "contrary", "nothing drafted")
CLOSED = ("never", "rarely", "bursts", "mixed", "contrary", "always", "one copies", "switching")


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


def groups(name: str, num_slots: int, share: float, length: int = 64, num_groups: int = 3) -> Simulation:
    """Requests that start together, with nobody waiting behind them: a group takes as long as its slowest."""
    return replace(
        simulation(PROCESSES[name], num_slots, share),
        closed=True,
        length=length,
        num_tokens=num_groups * num_slots * length,
    )


@final
class Watched(Budget):
    """Passes everything on, counts the steps that draft and, if it is `crowded`, says that somebody waits."""

    def __init__(self, inner: Budget, crowded: bool = False) -> None:
        self.inner = inner
        self.crowded = crowded
        self.num_asked = 0

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        limits = self.inner.limits(slot_states, num_waiting or int(self.crowded))
        self.num_asked += any(limit.num_nodes for limit in limits)
        return limits

    def prune(self, draft: Draft) -> Draft:
        return self.inner.prune(draft)

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        self.inner.observe(commits, seconds)

    def reset(self) -> None:
        self.inner.reset()


def took(propose_s: float, verify_s: float = 0.015) -> dict[str, float]:
    return {"propose_s": propose_s, "verify_s": verify_s}


def speedup(case: Simulation, budget: Budget) -> float:
    return case.run(budget).tokens_per_s / case.run(FixedBudget(0)).tokens_per_s


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("num_slots", [1, 4, 16])
@pytest.mark.parametrize("name", POOLED)
def test_it_does_no_harm(name: str, num_slots: int, share: float) -> None:
    case = simulation(PROCESSES[name], num_slots, share, num_tokens=300 if num_slots < 16 else 200)
    assert speedup(case, AdaptiveBudget(COSTS, 8)) >= 0.97


@pytest.mark.parametrize("num_steps", [0.3, 3.0, 12.0])
@pytest.mark.parametrize("num_slots", [1, 4])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("name", POOLED)
def test_it_does_no_harm_where_prompts_must_be_read_first(
    name: str, closed: bool, num_slots: int, num_steps: float
) -> None:
    """Reading a prompt costs that many plain steps. An engine has met the proposer before the clock starts."""
    case = replace(
        simulation(PROCESSES[name], num_slots, 0.2), closed=closed, read_s=num_steps * COSTS.forward[1] / 100
    )
    budget = AdaptiveBudget(COSTS, 8)
    replace(case, num_tokens=40).run(budget)
    budget.reset()
    assert speedup(case, budget) >= 0.97


def test_reading_every_prompt_would_do_harm() -> None:
    """The negative control of the test above."""
    case = replace(simulation(PROCESSES["never"], 4, 0.2), read_s=12 * COSTS.forward[1] / 100)
    budget = AdaptiveBudget(COSTS, 8, AdaptiveConfig(prompt_share=float("inf"), free_probe=float("inf")))
    replace(case, num_tokens=40).run(budget)
    budget.reset()
    assert speedup(case, budget) < 0.97


@pytest.mark.parametrize(("num_slots", "least"), [(1, 0.88), (2, 0.88)])
def test_prompts_are_read_where_that_pays(num_slots: int, least: float) -> None:
    case = replace(simulation(PROCESSES["often"], num_slots, 0.1, 1600 // num_slots), read_s=COSTS.forward[1] / 100)
    best = max(speedup(case, FixedBudget(count)) for count in (1, 2, 4, 8))
    assert best > 1.1, best
    assert speedup(case, AdaptiveBudget(COSTS, 8)) >= least * best


@pytest.mark.parametrize(("num_steps", "least"), [(1.0, 1.3), (3.0, 1.3), (6.0, 1.05)])
def test_a_short_request_in_vain_does_not_end_drafting_behind_long_prompts(num_steps: float, least: float) -> None:
    """Two wrong answers of 8 tokens, then two of 256 whose drafts are right at every other token."""
    found = []
    for seed in range(6):
        case = replace(
            simulation(constant(0.5), 1, 0.12, num_tokens=512),
            length=256,
            read_s=num_steps * COSTS.forward[1] / 100,
            seed=seed,
        )
        budget = AdaptiveBudget(COSTS, 8)
        replace(case, process=constant(0.0), length=8, num_tokens=16).run(budget)
        budget.reset()
        found.append(speedup(case, budget))
    assert mean(found) >= least, found


SLOWED = TableCosts({1: 0.0200, 2: 0.0200, 4: 0.0203, 6: 0.0206, 8: 0.0228, 16: 0.0392}, judge=0.00003)
"""`COSTS` from a machine that something else slowed while it took few rows: nodes look cheap."""


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2])
@pytest.mark.parametrize("num_slots", [1, 2, 4])
@pytest.mark.parametrize("name", POOLED)
def test_a_wrong_table_does_little_harm(name: str, num_slots: int, share: float) -> None:
    """It is learnt what forwards take. Until then something is lost, so the case is longer."""
    assert speedup(simulation(PROCESSES[name], num_slots, share, num_tokens=600), AdaptiveBudget(SLOWED, 8)) >= 0.97


@final
class Spell(Budget):
    """Passes everything on; the machine seems to be slow just while the first eight drafts are verified."""

    def __init__(self, inner: Budget) -> None:
        self.inner = inner
        self.num_nodes = self.num_slow = 0

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        return self.inner.limits(slot_states, num_waiting)

    def prune(self, draft: Draft) -> Draft:
        draft = self.inner.prune(draft)
        self.num_nodes = sum(draft.num_nodes)
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        slow = self.num_nodes > 0 and self.num_slow < 8
        self.num_slow += slow
        self.inner.observe(commits, {**seconds, "verify_s": (2 if slow else 1) * seconds["verify_s"]})

    def reset(self) -> None:
        self.inner.reset()


def test_a_slow_spell_costs_gains_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the negative control: what was learnt in it, if it were believed for good."""
    case = simulation(constant(0.8), 4, 0.05, num_tokens=1200)
    usual = speedup(case, AdaptiveBudget(COSTS, 4))
    assert usual > 1.1
    assert speedup(case, Spell(AdaptiveBudget(COSTS, 4))) > 1 + 0.7 * (usual - 1)
    monkeypatch.setattr(drift, "PATIENCE", 10**9)
    assert speedup(case, Spell(AdaptiveBudget(COSTS, 4))) < 1 + 0.3 * (usual - 1)


def test_a_wrong_table_that_is_believed_would_do_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(drift, "SURE", 10**9)
    for name, num_slots, share in (("bursts", 4, 0.1), ("contrary", 4, 0.1)):
        assert speedup(simulation(PROCESSES[name], num_slots, share, num_tokens=600), AdaptiveBudget(SLOWED, 8)) < 0.97


@pytest.mark.parametrize(
    ("name", "num_slots", "share", "least"),
    [
        ("often", 1, 0.01, 0.93),
        ("often", 1, 0.1, 0.94),
        ("often", 4, 0.01, 1.02),
        ("bursts", 1, 0.01, 1.0),
        ("bursts", 4, 0.01, 1.08),
        ("mixed", 1, 0.4, 1.1),
        ("drifting", 1, 0.1, 0.92),
    ],
)
def test_it_is_near_the_best_fixed_number_or_better(name: str, num_slots: int, share: float, least: float) -> None:
    case = simulation(PROCESSES[name], num_slots, share, num_tokens=800 // num_slots)
    ratios = []
    for seed in range(5):
        seeded = replace(case, seed=seed)
        best = max(speedup(seeded, FixedBudget(count)) for count in (0, 1, 2, 4, 8))
        ratios.append(speedup(seeded, AdaptiveBudget(COSTS, 8)) / best)
    assert mean(ratios) >= least, ratios


@pytest.mark.parametrize("share", [0.01, 0.03, 0.4])
@pytest.mark.parametrize("num_slots", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CLOSED)
def test_it_does_no_harm_to_groups_that_start_together(name: str, num_slots: int, share: float) -> None:
    assert speedup(groups(name, num_slots, share), AdaptiveBudget(COSTS, 8)) >= 0.97


@pytest.mark.parametrize(("num_slots", "share"), [(4, 0.01), (4, 0.03), (2, 0.4)])
def test_with_one_balance_for_all_the_others_would_pay_for_the_one_that_copies(num_slots: int, share: float) -> None:
    """The negative control of the test above: what it sees if the balances of the requests are gone."""
    case = groups("one copies", num_slots, share, num_groups=6)
    assert speedup(case, Watched(AdaptiveBudget(COSTS, 8), crowded=True)) < 0.97
    assert speedup(case, AdaptiveBudget(COSTS, 8)) >= 0.97


@pytest.mark.parametrize(
    ("num_slots", "share", "least"), [(1, 0.01, 0.95), (2, 0.01, 0.95), (4, 0.01, 0.9), (1, 0.4, 0.9)]
)
def test_a_group_that_copies_is_near_the_best_fixed_number(num_slots: int, share: float, least: float) -> None:
    case = groups("always", num_slots, share, length=160)
    best = max(speedup(case, FixedBudget(count)) for count in (1, 2, 4, 8))
    assert best > 1.25
    assert speedup(case, AdaptiveBudget(COSTS, 8)) >= least * best


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(PROCESSES)),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([0.005, 0.02, 0.05, 0.3, 0.7]),
    st.integers(0, 1000),
)
def test_no_request_ends_later_than_the_bound_says(name: str, num_slots: int, share: float, seed: int) -> None:
    """n + overdraft + (refill + probing) n plain steps, the two drafts of the beginning, and one probe."""
    length, config = 48, AdaptiveConfig()
    case = replace(groups(name, num_slots, share, length=length, num_groups=2), hiccup_s=0.0, seed=seed)
    plain_s = case.run(FixedBudget(0)).ended_s
    assert max(plain_s) == pytest.approx(min(plain_s))
    late = config.overdraft + (config.refill + config.probe_share) * length + 3 * share
    assert max(case.run(AdaptiveBudget(COSTS, 8)).ended_s) <= plain_s[0] * (1 + late / length) * (1 + 1e-9)


def test_its_decisions_are_a_function_of_costs_seconds_and_texts() -> None:
    case = simulation(bursts(), 4, 0.1)
    assert case.run(AdaptiveBudget(COSTS, 8)) == case.run(AdaptiveBudget(COSTS, 8))


@pytest.mark.parametrize("share", [0.03, 0.4, 1.0])
@pytest.mark.parametrize("num_slots", [1, 4])
def test_a_proposer_that_never_pays_is_asked_rarely_and_nothing_is_ranked_in_between(
    num_slots: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One probe per (its cost / 0.7 %) steps, beside those of new requests and of the beginning."""
    num_choices = 0

    def counted(*given: Any) -> Selection:
        nonlocal num_choices
        num_choices += 1
        return choose(*given)

    monkeypatch.setattr(adaptive, "choose", counted)
    case = replace(groups("never", num_slots, share, length=600, num_groups=1), hiccup_s=0.0)
    budget = Watched(AdaptiveBudget(COSTS, 8))
    case.run(budget)
    asked_at_most = 2 + 2 + min(NUM_PROBES, MOST_LOST / share) + 600 * 0.007 / share
    assert 3 <= budget.num_asked <= asked_at_most
    assert num_choices <= 4 * asked_at_most + 600 / NOT_NOW


def test_a_probe_that_pays_is_followed_by_the_next_at_once() -> None:
    costs = TableCosts({1: 0.0150, 2: 0.0165})
    budget, slot_states = AdaptiveBudget(costs, 8), [SlotState(1, 1000, 50, greedy=True)]
    asked = []

    def passed(num_nodes: int) -> dict[str, float]:
        return took(0.0006 if asked[-1] else 0.0, costs.forward_s(1, 1 + num_nodes, 0))

    for _ in range(60):
        limit = budget.limits(slot_states)[0]
        asked.append(limit.num_nodes > 0)
        kept = budget.prune(Draft.of_chains([[1] * min(limit)])).num_nodes[0]
        tokens = [1] * (kept + 1)
        budget.observe([Commit(0, list(range(kept + 1)), tokens, 0)], passed(kept))
    assert all(asked[10:])
    for step in range(60):
        limit = budget.limits(slot_states)[0]
        asked.append(limit.num_nodes > 0)
        kept = budget.prune(Draft.of_chains([[7] * min(limit)])).num_nodes[0]
        budget.observe([Commit(0, [0], [step % 5], 0)], passed(kept))
    assert sum(asked[-40:]) < 12  # of a share of 4 %, every seventh


def measured(budget: AdaptiveBudget, slot_states: list[SlotState], propose_s: float, steps: int = 8) -> None:
    """Steps whose drafts, if any, are wrong."""
    for _ in range(steps):
        limits = budget.limits(slot_states)
        budget.prune(Draft.of_trees([Tree.chain([0] * min(limit)) for limit in limits]))
        commits = [Commit(place, [0], [1], place) for place in range(len(slot_states))]
        budget.observe(commits, took(propose_s if max(limits).num_nodes else 0.0))


def test_a_cheap_proposer_drafts_all_it_can_and_is_cut() -> None:
    budget, slot_states = AdaptiveBudget(COSTS, 8), [SlotState(place, 100, 50, greedy=True) for place in range(4)]
    measured(budget, slot_states, propose_s=0.0001, steps=30)
    assert [limit.num_nodes for limit in budget.limits(slot_states)] == [8] * 4
    assert budget.prune(Draft.of_chains([[0] * 8] * 4)).num_nodes == (0,) * 4


def test_a_sampled_draft_is_never_cut() -> None:
    budget, slot_states = AdaptiveBudget(COSTS, 8), [SlotState(1, 100, 50, greedy=False)]
    measured(budget, slot_states, propose_s=0.0001)
    budget.limits(slot_states)
    draft = Draft.of_chains([[0] * 8], probs_BMV=torch.full((1, 9, 2), 0.5))
    assert budget.prune(draft) is draft
    budget.observe([Commit(0, [0], [1], 0)], took(0.0001))
    assert max(budget.limits(slot_states)).num_nodes < 8  # from now on the limit alone decides


def test_the_shape_of_trees_is_learnt() -> None:
    budget, slot_states = AdaptiveBudget(TableCosts({1: 1.0, 16: 1.0}), 4), [SlotState(1, 100, 50, greedy=True)]
    for _ in range(40):
        limit = budget.limits(slot_states)[0]
        nodes = min(limit.num_nodes, 4)
        budget.prune(Draft.of_trees([Tree([0, 1, 2, 3][:nodes], [-1, -1, 1, -1][:nodes])]))
        budget.observe([Commit(0, [0], [1, 2, 9], 0)], took(0.1 if nodes else 0.0, 1.0))
    assert budget.limits(slot_states)[0].num_nodes >= 3
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
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=100, ignore_eos=True))
    assert sum(slot.num_nodes for step in steps for slot in step.slots) <= 6
    engine.reset()
    assert engine.generate([[1, 2, 3]], SamplingParams(max_tokens=5))[0].tokens


def test_a_named_budget_is_calibrated_for_the_target() -> None:
    target = tiny_target()
    engine = Engine(target, load_proposer("ngram", target), budget="auto")
    assert isinstance(engine.budget, AdaptiveBudget)
    assert engine.budget.costs.forward_s(1, 1, 50) > 0
    plain = Engine(target, load_proposer("ngram", target))
    prompt = [1, 2, 3, 1, 2, 3]
    assert engine.generate([prompt], SamplingParams(max_tokens=40)) == plain.generate(
        [prompt], SamplingParams(max_tokens=40)
    )


def test_a_step_whose_tokens_are_forced_says_nothing_about_drafts() -> None:
    budget = AdaptiveBudget(COSTS, 4)
    budget.drafting = True
    forced = SlotState(1, 100, 50, greedy=True, num_forced=3)
    assert [limit.num_nodes for limit in budget.limits([forced])] == [0]
    assert budget.drafting
