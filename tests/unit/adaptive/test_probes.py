"""When drafts are tried while drafting is off."""

import pytest

from outrider.adaptive.probes import MOST_LOST, MOST_READ, NOT_NOW, NUM_PROBES, Exploration, ProbeTimer


def test_a_probe_in_vain_makes_the_next_one_wait_for_its_share() -> None:
    timer = ProbeTimer(share=0.007, free=0.5)
    assert timer.is_due
    timer.spend(lost=0.14, read=0.0)
    assert timer.steps == pytest.approx(20)
    for _ in range(20):
        assert not timer.is_due
        timer.pass_step(drafted=False)
    assert timer.is_due


def test_reading_is_saved_up_once() -> None:
    """A read of 2.5 plain steps, 0.5 of them free, takes 2 / 1 % = 200 steps to save up, and none afterwards."""
    timer = ProbeTimer(share=0.01, free=0.5)
    assert not timer.affords(2.5)
    for _ in range(199):
        timer.pass_step(drafted=False)
    assert not timer.affords(2.5)
    timer.pass_step(drafted=False)
    assert timer.affords(2.5)
    timer.spend(lost=0.1, read=2.5)
    assert timer.steps == pytest.approx(60)  # of 0.1 + 0.5
    timer.pass_step(drafted=True)
    for _ in range(60 + 199):  # the first 60 steps pay for the last probe
        timer.pass_step(drafted=False)
    assert not timer.affords(2.5)
    assert timer.steps == NOT_NOW


def explored(exploration: Exploration, request: int) -> bool:
    """Return whether this new request is explored; each probe is wrong and costs 0.1 plain steps."""
    exploration.admit([request], [request])
    if exploration.request != request:
        return False
    exploration.begin(read_share=0.0, pays=True)
    for _ in range(NUM_PROBES):
        assert exploration.begun
        exploration.spend(0.1, num_slots=1)
    return not exploration.begun


def test_explorations_in_vain_become_rare() -> None:
    exploration = Exploration()
    assert [request for request in range(40) if explored(exploration, request)] == [0, 2, 5, 10, 19, 36]


def test_an_exploration_that_pays_makes_the_next_come_sooner() -> None:
    exploration = Exploration()
    assert [request for request in range(11) if explored(exploration, request)] == [0, 2, 5, 10]  # eight would wait
    exploration.admit(range(11, 20), range(11, 20))
    assert exploration.request == 19
    exploration.begin(0.0, pays=True)
    exploration.pay()
    assert explored(exploration, 20)
    assert [request for request in range(21, 40) if explored(exploration, request)] == [29]  # eight, and not sixteen


def test_an_expensive_exploration_ends_early() -> None:
    exploration = Exploration()
    exploration.admit([1], [1])
    exploration.begin(0.0, pays=True)
    exploration.spend(MOST_LOST, num_slots=1)
    assert not exploration.begun


def test_long_prompts_and_hopeless_machines_are_not_explored_and_count_for_nothing() -> None:
    exploration = Exploration()
    for request, share, pays in ((1, 1.01 * MOST_READ, True), (2, 0.0, False)):
        exploration.admit([request], [request])
        exploration.begin(share, pays)
        assert not exploration.begun
    assert explored(exploration, 3)


def test_in_a_batch_more_requests_pass_until_the_next_exploration() -> None:
    exploration = Exploration()
    exploration.admit([1, 2], [1, 2])
    exploration.begin(0.0, pays=True)
    for _ in range(NUM_PROBES):
        exploration.spend(0.1, num_slots=2)
    exploration.admit([3, 4], [3, 4])
    assert exploration.request is None
    exploration.admit([5], [3, 5])
    assert exploration.request == 5


def test_a_request_that_ends_is_left() -> None:
    exploration = Exploration()
    exploration.admit([1], [1])
    exploration.begin(0.0, pays=True)
    exploration.admit([2], [2])
    assert exploration.request is None  # in vain: the next request waits
    exploration.admit([3], [3])
    assert exploration.request == 3
