"""Order, packing and learning rate: pure functions with nothing lost."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.train import schedule
from outrider.train.config import TrainConfig
from outrider.train.schedule import generator, learning_rate, plan, warmup_steps

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**({"row_length": 24, "rows": 2, "accumulation": 2} | changes))  # type: ignore[arg-type]


@given(LENGTHS, st.integers(1, 3), st.integers(1, 3))
def test_every_epoch_reads_every_text_once(lengths: list[int], epochs: int, processes: int) -> None:
    found = plan(lengths, config(epochs=epochs, seed=3), processes)
    for epoch in range(epochs):
        rows = [row for step in found.steps if step.epoch == epoch for micro in step.micros for row in micro]
        assert sorted(index for row in rows for index in row) == [at for at, length in enumerate(lengths) if length]
        assert all(sum(min(24, lengths[index]) for index in row) <= 24 for row in rows)
    assert all(
        len(step.micros) <= 2 * processes and all(len(micro) <= 2 for micro in step.micros) for step in found.steps
    )
    assert found.num_tokens == epochs * sum(min(24, length) for length in lengths)
    assert found.num_cut == sum(length > 24 for length in lengths)


def test_a_process_more_or_a_pass_more_is_the_same_step() -> None:
    lengths = [5 + index % 17 for index in range(100)]
    assert plan(lengths, config(accumulation=4), 1) == plan(lengths, config(accumulation=2), 2)


def test_epochs_and_seeds_differ_and_the_same_ones_do_not() -> None:
    lengths = [5 + index % 17 for index in range(100)]
    found = plan(lengths, config(epochs=2))
    assert found == plan(lengths, config(epochs=2))
    assert found.steps != plan(lengths, config(epochs=2, seed=1)).steps
    first, second = ([step.micros for step in found.steps if step.epoch == epoch] for epoch in (0, 1))
    assert first != second


def test_a_window_bounds_the_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WINDOW", 4)
    rows = [row for step in plan([6] * 10, config()).steps for micro in step.micros for row in micro]
    assert Counter(map(len, rows)) == {4: 2, 2: 1}


@pytest.mark.parametrize("limit", [1, 100, 1000, 5000])
def test_a_token_budget_stops_after_the_step_that_reaches_it(limit: int) -> None:
    lengths = [5 + index % 17 for index in range(100)]
    found = plan(lengths, config(max_tokens=limit, epochs=1))
    assert limit <= found.num_tokens < limit + 24 * 2 * 2
    assert found.num_tokens - found.steps[-1].num_tokens < limit


def test_no_tokens_no_steps() -> None:
    assert plan([0, 0], config(max_tokens=10)).steps == ()


def test_the_learning_rate_rises_then_falls_along_a_cosine() -> None:
    wanted = config(learning_rate=2.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 40, wanted) for step in range(40)]
    assert warmup_steps(40, wanted) == 4
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[22] == pytest.approx(1.0)
    assert all(before > after for before, after in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 35 / 36))
    assert learning_rate(0, 1, config(warmup_ratio=1.0, learning_rate=3.0)) == 3.0


def test_draws_belong_to_their_place() -> None:
    def first(seed: int, *place: int | str) -> int:
        return generator(seed, *place).initial_seed()

    assert first(0, "draw", 3, 1) == first(0, "draw", 3, 1)
    places = [(0, "draw", 3, 1), (0, "draw", 31), (0, "draw", 3, 2), (1, "draw", 3, 1), (0, "order", 3, 1)]
    assert len({first(*place) for place in places}) == len(places)  # type: ignore[arg-type]
