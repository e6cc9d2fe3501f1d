"""The contract holds whatever the budget does: cuts, pauses and changes of mind, with every kind of method."""

from collections.abc import Mapping, Sequence
from typing import final

import pytest

from outrider.adaptive.config import AdaptiveConfig
from outrider.adaptive.controller import FEW, AdaptiveBudget
from outrider.budget import Budget, FixedBudget, SlotState
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.metrics import StepRecord
from outrider.proposer import Commit, DraftLimit
from outrider.proposers import proposer_class, proposer_names
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing import Metronome, RandomTrees, Restless, TableCosts, draw_case, tiny_target
from outrider.testing.contract import CHECKS

POSITIONS = 64
TARGETS: dict[int, Target] = {}
COSTS = TableCosts({1: 1.0, 3: 1.0, 4: 1.2, 8: 2.0})
EAGER = AdaptiveConfig(start_gain=0.9, stop_gain=0.8, probe_share=0.3, refill=0.3, allowance_share=1.0)


def target_of(seed: int) -> Target:
    return TARGETS.setdefault(seed, tiny_target(seed, max_positions=POSITIONS))


def restless(num_nodes: int) -> Budget:
    return Restless(num_nodes)


def cheap(num_nodes: int) -> Budget:
    return Metronome(AdaptiveBudget(COSTS, num_nodes), [0.001])


def dear(num_nodes: int) -> Budget:
    """Drafting seems to cost more, then less: it starts and stops again and again."""
    return Metronome(AdaptiveBudget(COSTS, num_nodes, EAGER), [0.0, 0.0, 0.3, 0.3, 0.1, 0.6, 0.1, 0.05])


BUDGETS = (restless, cheap, dear)


@final
class Fixed(Budget):
    """The same number of nodes in every step; prompts are read ahead, or with the first draft."""

    def __init__(self, num_nodes: int, *, reads_ahead: bool) -> None:
        self.inner = FixedBudget(num_nodes)
        self.reads_ahead = reads_ahead

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        if self.reads_ahead:
            assert all(state.num_pending <= self.inner.num_nodes + FEW for state in slot_states), (
                "who reads ahead is never behind"
            )
        return self.inner.limits(slot_states, num_waiting)

    def prune(self, draft: Draft) -> Draft:
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""


@pytest.mark.parametrize("name", [name for name in proposer_names() if name != "none"])
def test_reading_a_prompt_ahead_changes_no_draft(name: str) -> None:
    target = target_of(0)
    steps: list[list[StepRecord]] = [[], []]
    for records, reads_ahead in zip(steps, (True, False), strict=True):
        proposer = proposer_class(name).example(target, 1)
        engine = Engine(
            target,
            proposer,
            max_batch=2,
            budget=Fixed(proposer.spec.max_nodes, reads_ahead=reads_ahead),
            record=lambda record, to=records: to.append(record) if isinstance(record, StepRecord) else None,
        )
        engine.generate(
            [[1 + n % 7 for n in range(40)], [3, 4], [5] * 20], SamplingParams(max_tokens=12, ignore_eos=True)
        )
    ahead, behind = ([record.slots for record in records] for records in steps)
    assert ahead == behind


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*(name for name in proposer_names() if name != "none"), "random_trees"])
def test_contract(name: str, check: str) -> None:
    """Each pair meets one of the budgets on one case of traffic; together they meet all of them."""
    seed = 8 * sorted([*proposer_names(), "random_trees"]).index(name) + list(CHECKS).index(check)
    target = target_of(seed % 2)
    case = draw_case(seed, target.spec.vocab_size, POSITIONS, budget=BUDGETS[(seed + seed // 8) % 3])
    if name == "random_trees":
        CHECKS[check](target, RandomTrees(target, seed=seed).proposer(), case)
    else:
        CHECKS[check](target, proposer_class(name).example(target, seed), case)
