"""What a choice charges: rows that are read, and rows that are judged."""

import pytest

from outrider.adaptive.drift import SURE, Drift
from outrider.adaptive.step_cost import StepCost
from outrider.costs.tables import TargetCosts


class Counting(TargetCosts):
    """10 a forward and 1 a row, 0.5 a judged row, 2 the rest."""

    def __init__(self) -> None:
        self.num_asked = 0

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        self.num_asked += 1
        return 10 + num_rows

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        self.num_asked += 1
        return 0.5 * num_rows

    def rest_s(self, num_slots: int) -> float:
        return 2.0


def test_the_worked_example() -> None:
    cost = StepCost(Counting(), Drift(), 2, 64.0, greedy=True)
    assert cost.plain_s == 10 + 2 + 2 * 0.5 + 2
    assert cost.seconds(3, 3) == 10 + 5 + 3 * 0.5 + 2
    assert cost.seconds(3, 3.25) == pytest.approx(10 + 5 + 3.25 * 0.5 + 2)


def test_every_number_is_asked_for_once() -> None:
    costs = Counting()
    cost = StepCost(costs, Drift(), 1, 64.0, greedy=True)
    for _ in range(3):
        cost.seconds(2, 2.5)
    assert costs.num_asked == 5  # forwards of 1 and 3 rows; 1, 2 and 3 rows judged


def test_what_forwards_took_is_learnt_and_the_rest_stays() -> None:
    """Twice the table without nodes, three times with four: half as much again in plain forwards."""
    cost = StepCost(Counting(), Drift(), 2, 64.0, greedy=True)
    before = cost.plain_s
    for _ in range(2 * SURE):
        cost.learn(0, 2 * 12.0)
        cost.learn(4, 3 * 16.0)
    assert cost.seconds(4, 2) == pytest.approx(16 * 1.5 + 2 * 0.5 + 2)
    assert cost.seconds(0, 2) == cost.plain_s == before
