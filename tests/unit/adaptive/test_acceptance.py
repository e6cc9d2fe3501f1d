"""Hindsight: what later tokens say about drafts, verified or not."""

import pytest

from outrider.adaptive.acceptance import FIRST, SHRINK, Acceptance, shape_of
from outrider.draft import Tree

CHAIN = shape_of((-1, 0, 1))
TREE = shape_of((-1, 0, -1))


def started(*requests: int) -> Acceptance:
    acceptance = Acceptance()
    acceptance.admit(dict.fromkeys(requests, True))
    return acceptance


def taught(tree: Tree, tokens: list[int], times: int = 200) -> Acceptance:
    acceptance = started(1)
    for _ in range(times):
        acceptance.drafted(1, tree)
        acceptance.emitted(1, tokens)
    return acceptance


def test_before_anything_is_known() -> None:
    assert started(1).chances(1, CHAIN) == [FIRST, FIRST**2, FIRST**3]
    assert started(1).chances(1, TREE) == [FIRST, FIRST**2, FIRST / 2]


def test_a_chain_is_judged_up_to_its_first_wrong_node() -> None:
    first, second, third = taught(Tree.chain([5, 6, 7]), [5, 9]).chances(1, CHAIN)
    assert first > 0.95
    assert second / first < 0.05
    assert third <= second


def test_what_was_never_verified_is_judged_by_the_tokens_that_follow() -> None:
    acceptance = started(1)
    acceptance.drafted(1, Tree.chain([5, 6, 7]))
    for token in (5, 6):
        acceptance.emitted(1, [token])
        acceptance.drafted(1, Tree([], []))
    acceptance.emitted(1, [8])
    first, second, third = acceptance.chances(1, CHAIN)
    assert first > FIRST
    assert second / first > FIRST
    assert third / second < FIRST


def test_siblings_have_chances_of_their_own() -> None:
    acceptance = taught(Tree([5, 6, 7], [-1, 0, -1]), [7, 1])
    first, below, second = acceptance.chances(1, TREE)
    assert first < 0.05
    assert below <= first
    assert second > 0.9


def test_a_request_is_told_apart_from_the_others() -> None:
    acceptance = started(1, 2)
    for _ in range(50):
        for request, token in ((1, 5), (2, 9)):
            acceptance.drafted(request, Tree.chain([5]))
            acceptance.emitted(request, [token])
    one = shape_of((-1,))
    assert acceptance.chances(1, one)[0] > 0.9
    assert acceptance.chances(2, one)[0] < 0.1


def test_sampled_requests_are_told_apart_from_greedy_ones_also_before_they_draft() -> None:
    acceptance = Acceptance()
    acceptance.admit({1: True, 2: False})
    for _ in range(50):
        for request, token in ((1, 5), (2, 9)):
            acceptance.drafted(request, Tree.chain([5]))
            acceptance.emitted(request, [token])
    acceptance.admit({3: True, 4: False})
    one = shape_of((-1,))
    assert acceptance.chances(3, one)[0] > 0.5
    assert acceptance.chances(4, one)[0] < 0.2


def test_a_streak_is_a_class_of_its_own() -> None:
    """Right drafts come in runs of twelve: in a run the chance is high, behind its end it is low."""
    acceptance = started(1)
    for step in range(600):
        acceptance.drafted(1, Tree.chain([5]))
        acceptance.emitted(1, [5 if step % 24 < 12 else 9])
        if step == 587:  # the twelfth in a run
            inside = acceptance.chances(1, shape_of((-1,)))[0]
    assert inside > 0.75
    assert acceptance.chances(1, shape_of((-1,)))[0] < 0.25


def test_a_step_without_a_draft_ends_a_streak() -> None:
    acceptance = taught(Tree.chain([5]), [5], times=30)
    acceptance.drafted(1, Tree([], []))
    acceptance.emitted(1, [5])
    assert acceptance._requests[1].num_streak == 0


def test_a_reset_keeps_the_mean_but_little_of_its_weight() -> None:
    acceptance = taught(Tree.chain([5]), [9])
    acceptance.reset()
    acceptance.admit({7: True})
    one = shape_of((-1,))
    before = acceptance.chances(7, one)[0]
    assert before < FIRST / 2
    for _ in range(12):
        acceptance.drafted(7, Tree.chain([5]))
        acceptance.emitted(7, [5])
    assert acceptance.chances(7, one)[0] > 0.5


def test_the_worked_example() -> None:
    everyone = (10 + SHRINK * FIRST) / 44
    after = (10 + SHRINK * everyone) / 44
    assert (2 + SHRINK * after) / 6 == pytest.approx(0.50, abs=0.005)
