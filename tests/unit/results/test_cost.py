"""The price of a step and the speedup it predicts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.metrics import SlotStep, StepRecord
from outrider.results.cost import StepCost, plain_forward_s, step_cost

seconds = st.floats(1e-4, 1.0)


def step(
    num_rows: int, verify_s: float, propose_s: float = 0.0, other_s: float = 0.0, num_slots: int = 1
) -> StepRecord:
    slots = tuple(SlotStep(id, 9, num_rows - 1, num_rows - 1, 0, 1, False) for id in range(num_slots))
    return StepRecord(1, num_rows, True, slots, propose_s, verify_s, other_s / 2, other_s / 4, other_s / 4)


def test_the_worked_example() -> None:
    cost = StepCost(verify=1.2, draft=0.1, overhead=0.1, plain_overhead=0.1)
    falls = cost.waterfall(2.4, measured=1.8)
    assert cost.break_even_tau == pytest.approx(1.4 / 1.1)
    assert falls.ideal == 2.4
    assert falls.with_verify == pytest.approx(2.4 * 1.1 / 1.3)
    assert falls.with_draft == pytest.approx(2.4 * 1.1 / 1.4)
    assert falls.with_host == pytest.approx(2.4 * 1.1 / 1.4)
    assert falls.measured == 1.8


@settings(deadline=None)
@given(st.lists(st.tuples(seconds, seconds, seconds), min_size=1, max_size=9))
def test_plain_decoding_costs_one_plain_step(times: list[tuple[float, float, float]]) -> None:
    steps = [step(1, verify_s, propose_s, other_s) for verify_s, propose_s, other_s in times]
    cost = step_cost(steps, steps)
    assert cost is not None
    assert cost.verify == pytest.approx(1)
    assert cost.plain_overhead >= 0


def test_each_shape_is_priced_against_plain_steps_of_its_own_batch_size() -> None:
    plain = [step(1, 1.0), step(1, 2.0, num_slots=4)]
    mixed = [step(5, 1.5), step(5, 3.0, num_slots=4)]
    cost = step_cost(mixed, plain)
    assert plain_forward_s(plain) == {1: 1.0, 4: 2.0}
    assert cost is not None
    assert cost.verify == pytest.approx(1.5)
    nearest = step_cost([step(5, 6.0, num_slots=3)], plain)
    assert nearest is not None
    assert nearest.verify == pytest.approx(3.0)


def test_an_outlier_does_not_move_the_price() -> None:
    calm, disturbed = [step(4, 1.2)] * 9, [step(4, 1.2)] * 8 + [step(4, 500.0)]
    plain = [step(1, 1.0)] * 8 + [step(1, 300.0)]
    assert step_cost(calm, plain) == step_cost(disturbed, plain)


def test_shapes_count_as_often_as_they_ran() -> None:
    steps = [step(1, 1.0)] * 3 + [step(8, 2.0, propose_s=0.4, other_s=0.2)]
    cost = step_cost(steps, [step(1, 1.0)])
    assert cost is not None
    assert cost.verify == pytest.approx(1.25)
    assert cost.draft == pytest.approx(0.1)
    assert cost.overhead == pytest.approx(0.05)
    assert cost.plain_overhead == 0


def test_without_something_to_compare_with_there_is_no_price() -> None:
    assert step_cost([], [step(1, 1.0)]) is None
    assert step_cost([step(4, 1.0)], []) is None
    assert step_cost([step(4, 1.0)], [step(2, 1.0)]) is None
    assert step_cost([step(4, 1.0)], [step(1, 0.0)]) is None


@settings(deadline=None)
@given(seconds, seconds, st.floats(1, 8))
def test_costs_only_ever_take_away(verify_s: float, propose_s: float, tau: float) -> None:
    cost = step_cost([step(4, 1 + verify_s, propose_s, 0.2)], [step(1, 1.0, 0.0, 0.2)])
    assert cost is not None
    falls = cost.waterfall(tau, None)
    assert falls.ideal >= falls.with_verify >= falls.with_draft
    assert falls.with_host == pytest.approx(tau / cost.break_even_tau)
    assert (falls.with_host < 1) == (tau < cost.break_even_tau)
