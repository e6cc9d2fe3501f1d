"""Balances in plain steps, and the bound that they keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.adaptive.credit import TOGETHER, SlowdownBudget


def slowdown(refill: float = 0.0, overdraft: float = 1.0, max_balance: float = 12.0) -> SlowdownBudget:
    found = SlowdownBudget(refill=refill, overdraft=overdraft, max_balance=max_balance)
    found.admit([1, 2])
    return found


def test_the_worked_example() -> None:
    found = slowdown()
    for emitted, balance in ((2, 0.5), (1, 0.0), (1, -0.5)):
        found.book(1, emitted - 1.5)
        assert found.balance(1) == pytest.approx(balance)
    assert found.burst([1]) == pytest.approx(0.5)
    assert found.burst([2]) == found.burst([TOGETHER]) == 1.0
    assert found.burst([1, 2]) == pytest.approx(0.5)


def test_every_balance_is_refilled_and_holds_no_more_than_the_most() -> None:
    found = slowdown(refill=0.5, max_balance=2.0)
    for _ in range(3):
        found.pass_step()
    assert found.balance(1) == found.balance(TOGETHER) == 1.5
    found.book(1, 9.0)
    assert found.balance(1) == 2.0
    found.book(1, -1.0)
    assert found.balance(1) == 1.0


def test_a_new_request_begins_with_nothing_and_an_old_one_keeps_its_balance() -> None:
    found = slowdown(refill=0.5)
    found.pass_step()
    found.book(1, 1.0)
    found.admit([1, 3])
    assert found.balance(1) == 1.5
    assert found.balance(3) == 0.0
    found.admit([2])
    assert found.balance(2) == 0.0  # it had left
    found.reset()
    assert found.balance(TOGETHER) == 0.0


@given(st.lists(st.tuples(st.floats(1, 9), st.integers(1, 9)), max_size=60), st.floats(0, 0.1), st.floats(0, 2))
def test_who_risks_no_more_than_the_burst_ends_within_the_bound(
    steps: list[tuple[float, int]], refill: float, credit: float
) -> None:
    """A step that is too long for the burst is a plain one."""
    found = slowdown(refill, credit)
    spent = num_tokens = 0.0
    for length, emitted in steps:
        length, emitted = (length, emitted) if length - 1 <= found.burst([1]) else (1, 1)
        found.pass_step()
        found.book(1, emitted - length)
        spent, num_tokens = spent + length, num_tokens + emitted
    assert spent <= num_tokens + credit + refill * len(steps) + 1e-9
