"""The comparison itself, on numbers made up here: no server, so it runs with every other test."""

import random
from dataclasses import replace

import pytest
from agreement import Played, Shared, Step, check_drafts, shared_steps, wilson

NUM_NODES, LENGTH = 3, 48


def played(seed: int, chance: float, slips: float = 0.0) -> Played:
    """Steps of eight answers, where each drafted token is right with `chance`; `slips` of the steps go otherwise."""
    draw = random.Random(seed)
    right = [[[draw.random() < chance for _ in range(NUM_NODES)] for _ in range(LENGTH)] for _ in range(8)]
    steps = []
    for answer in right:
        found, start = [], 1
        while start < LENGTH:
            num_accepted = (answer[start] + [False]).index(False)
            if random.Random(f"{seed} {len(steps)} {start}").random() < slips:
                num_accepted = (num_accepted + 2) % (NUM_NODES + 1)
            found.append(Step(start, num_accepted))
            start += num_accepted + 1
        steps.append(tuple(found))
    flat = [step for found in steps for step in found]
    return Played(
        answers=((7,) * LENGTH,) * 8,
        steps=tuple(steps),
        num_drafts=len(flat),
        num_accepted_per_pos=tuple(sum(step.num_accepted > depth for step in flat) for depth in range(NUM_NODES)),
    )


NOWHERE = (None,) * 8


def test_equal_runs_agree() -> None:
    check_drafts(played(0, 0.6), played(0, 0.6), NUM_NODES, NOWHERE)


def test_a_few_steps_may_round_differently() -> None:
    check_drafts(played(0, 0.6), played(0, 0.6, slips=0.03), NUM_NODES, NOWHERE)


def test_another_rate_is_found_at_its_position() -> None:
    with pytest.raises(AssertionError, match="acceptance at position 1"):
        check_drafts(played(0, 0.6), played(0, 0.3), NUM_NODES, NOWHERE)


def test_other_drafts_of_equal_quality_are_found_step_by_step() -> None:
    ours, theirs = played(0, 0.6), played(1, 0.6)
    theirs = replace(theirs, num_drafts=ours.num_drafts, num_accepted_per_pos=ours.num_accepted_per_pos)
    with pytest.raises(AssertionError, match="steps at the same place accept equally many"):
        check_drafts(ours, theirs, NUM_NODES, NOWHERE)


def test_drafts_of_another_length_are_found() -> None:
    ours = played(0, 0.6)
    with pytest.raises(AssertionError, match="it drafts 2 tokens"):
        check_drafts(ours, replace(ours, num_accepted_per_pos=(5, 3)), NUM_NODES, NOWHERE)


def test_steps_near_the_end_and_behind_a_parting_are_left_out() -> None:
    steps = ((Step(1, 0), Step(2, 3), Step(6, 1), Step(44, 0), Step(45, 0)),)
    one = Played(answers=((7,) * LENGTH,), steps=steps, num_drafts=5, num_accepted_per_pos=(2, 1, 1))
    assert shared_steps(one, one, NUM_NODES, [None]) == Shared(4, 4, 4)
    assert shared_steps(one, one, NUM_NODES, [9]) == Shared(2, 2, 2)
    other = replace(one, steps=((Step(1, 1), Step(3, 0), Step(6, 1)),))
    assert shared_steps(one, other, NUM_NODES, [None]) == Shared(3, 2, 1)


def test_intervals() -> None:
    low, high = wilson(0, 20)
    assert low == pytest.approx(0, abs=1e-12)
    assert 0.1 < high < 0.2
    assert wilson(50, 100).high - wilson(50, 100).low < wilson(5, 10).high - wilson(5, 10).low
