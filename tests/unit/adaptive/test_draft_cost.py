"""The learnt cost of proposing: medians, lines between them, and no trap for one unlucky step."""

import pytest

from outrider.adaptive.draft_cost import EVERY, RECENT, SURE, OnlineDraftCost


def learnt(*seen: tuple[int, int, float]) -> OnlineDraftCost:
    costs = OnlineDraftCost()
    for slots, nodes, seconds in seen:
        for _ in range(SURE):
            costs.add(slots, nodes, seconds)
    return costs


def test_nothing_is_known_at_first() -> None:
    costs = OnlineDraftCost()
    assert (costs.idle_s(1), costs.extra_s(1, 4), costs.propose_s(1, 4, 4), costs.most_nodes) == (0, 0, 0, 0)


def test_the_worked_example() -> None:
    costs = learnt((1, 1, 0.002), (1, 4, 0.005))
    assert costs.extra_s(1, 3) == pytest.approx(0.004)
    assert costs.extra_s(1, 8) == pytest.approx(0.009)


def test_observing_alone_is_not_drafting() -> None:
    costs = learnt((1, 0, 0.001), (1, 2, 0.003))
    assert costs.extra_s(1, 2) == pytest.approx(0.002)
    assert costs.extra_s(1, 0) == 0
    assert costs.propose_s(1, 2, 2) == pytest.approx(0.003)


def test_a_pause_of_the_machine_does_not_count() -> None:
    costs = learnt((1, 2, 0.003))
    costs.add(1, 2, 5.0)
    assert costs.extra_s(1, 2) == pytest.approx(0.003)
    first = OnlineDraftCost()
    first.add(1, 1, 9.0)  # compiles
    first.add(1, 1, 0.002)
    assert first.extra_s(1, 1) == pytest.approx(0.002)


def test_old_steps_are_forgotten() -> None:
    costs = learnt((1, 1, 0.002))
    for _ in range(RECENT + EVERY):
        costs.add(1, 1, 0.004)
    assert costs.extra_s(1, 1) == pytest.approx(0.004)


def test_one_unlucky_step_of_a_shape_counts_no_more_than_in_proportion() -> None:
    costs = learnt((1, 1, 0.002))
    costs.add(1, 4, 1.0)
    assert costs.extra_s(1, 4) == pytest.approx(0.008)


def test_another_number_of_slots_takes_the_nearest_known() -> None:
    costs = learnt((1, 2, 0.002), (8, 2, 0.01))
    assert costs.extra_s(2, 2) == pytest.approx(0.002)
    assert costs.extra_s(6, 2) == pytest.approx(0.01)
    assert costs.num_seen(2) == 2 * SURE


def test_a_short_read_says_nothing_of_a_long_one() -> None:
    cost = OnlineDraftCost()
    cost.add_pending(1, 1, 40, 8e-3)  # most of it was spent on compiling
    assert cost.pending_s(40) == pytest.approx(8e-3)
    assert cost.pending_s(320) == pytest.approx(64e-3)
    assert cost.pending_s(321) == 0
    cost.add_pending(1, 1, 1000, 10e-3)
    assert cost.pending_s(4000) == pytest.approx(40e-3)
