"""The contract holds whatever the budget does: cuts, pauses and changes of mind, with every kind of method."""

import pytest

from outrider.adaptive import AdaptiveBudget, AdaptiveConfig
from outrider.budget import Budget
from outrider.proposers import proposer_class, proposer_names
from outrider.target import Target
from outrider.testing import Metronome, RandomTrees, Restless, TableCosts, draw_case, tiny_target
from outrider.testing.contract import CHECKS

POSITIONS = 64
TARGETS: dict[int, Target] = {}
COSTS = TableCosts({1: 1.0, 3: 1.0, 4: 1.2, 8: 2.0})
EAGER = AdaptiveConfig(enter=0.9, leave=0.8, probing=0.3, interest=0.3, giving=1.0)


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
