"""Tokens that a request will still emit."""

import pytest

from outrider.adaptive.remaining import TYPICAL, Remaining


def ended(*lengths: int) -> Remaining:
    remaining = Remaining()
    remaining.admit(range(len(lengths)))
    for request, length in enumerate(lengths):
        remaining.emitted(request, length)
    remaining.admit([100])
    return remaining


def test_the_worked_example() -> None:
    remaining = ended(20, 60, 100)
    remaining.emitted(100, 40)
    assert remaining.expected(100, 1000) == pytest.approx(69, abs=0.5)


def test_a_limit_is_the_most() -> None:
    assert ended(60, 100).expected(100, 7) == 7


def test_one_short_answer_does_not_speak_for_all() -> None:
    assert ended(8).expected(100, 1000) == (TYPICAL + 8) / 2


def test_without_longer_answers_a_typical_length_is_taken() -> None:
    remaining = ended(20)
    remaining.emitted(100, 20)
    assert remaining.expected(100, 1000) == TYPICAL
    remaining.reset()
    remaining.admit([5])
    assert remaining.expected(5, 1000) == TYPICAL
