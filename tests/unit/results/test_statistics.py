"""Speedups and their intervals: symmetric, scale-free, and right as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import RunError
from outrider.results.statistics import _student_t, paired_speedup, percentiles, total_ratio

seconds = st.floats(1e-3, 1e3)


@st.composite
def paired_times(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    num_prompts, num_repeats = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    row = st.lists(seconds, min_size=num_repeats, max_size=num_repeats)
    times = st.lists(row, min_size=num_prompts, max_size=num_prompts)
    return draw(times), draw(times)


def scaled(times: list[list[float]], factor: float) -> list[list[float]]:
    return [[second * factor for second in row] for row in times]


@settings(deadline=None)
@given(paired_times())
def test_the_interval_contains_the_point(times: tuple[list[list[float]], list[list[float]]]) -> None:
    interval = paired_speedup(*times, resamples=200)
    if len(times[0]) == 1:
        assert interval.low is None
        assert interval.high is None
    else:
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= interval.point <= interval.high


@settings(deadline=None)
@given(paired_times())
def test_a_method_against_itself_is_exactly_one(times: tuple[list[list[float]], list[list[float]]]) -> None:
    interval = paired_speedup(times[0], times[0], resamples=50)
    assert interval.point == 1
    assert interval.low in (1, None)
    assert interval.high in (1, None)


@settings(deadline=None)
@given(paired_times(), st.floats(0.1, 10))
def test_a_faster_clock_changes_nothing(times: tuple[list[list[float]], list[list[float]]], factor: float) -> None:
    base, own = times
    plain = paired_speedup(base, own, resamples=100)
    clock = paired_speedup(scaled(base, factor), scaled(own, factor), resamples=100)
    assert clock.point == pytest.approx(plain.point, rel=1e-9)
    assert plain.low is None or clock.low == pytest.approx(plain.low, rel=1e-9)
    assert paired_speedup(base, scaled(own, factor), resamples=1).point == pytest.approx(plain.point / factor, rel=1e-9)


@settings(deadline=None)
@given(paired_times())
def test_swapping_the_sides_gives_the_reciprocal(times: tuple[list[list[float]], list[list[float]]]) -> None:
    base, own = times
    there, back = paired_speedup(base, own, resamples=1), paired_speedup(own, base, resamples=1)
    assert there.point * back.point == pytest.approx(1, rel=1e-9)


@settings(deadline=None)
@given(paired_times(), st.permutations(range(8)))
def test_the_order_of_prompts_does_not_move_the_point(
    times: tuple[list[list[float]], list[list[float]]], order: list[int]
) -> None:
    kept = [index for index in order if index < len(times[0])]
    shuffled = [[side[index] for index in kept] for side in times]
    there, back = (paired_speedup(*sides, resamples=1) for sides in (times, shuffled))
    assert there.point == pytest.approx(back.point, rel=1e-9)


def test_drift_that_hits_both_sides_of_a_repeat_cancels() -> None:
    base = [[2.0, 6.0, 20.0], [4.0, 12.0, 40.0]]
    own = [[1.0, 3.0, 10.0], [2.0, 6.0, 20.0]]
    interval = paired_speedup(base, own)
    assert interval.point == pytest.approx(2)
    assert interval.low == pytest.approx(2)


def test_one_disturbed_repeat_is_ignored() -> None:
    assert paired_speedup([[2.0, 2.0, 200.0]], [[1.0, 1.0, 1.0]]).point == pytest.approx(2)


def test_the_worked_example() -> None:
    base, own = [[2.0], [2.0]], [[1.0], [4.0]]
    assert paired_speedup(base, own).point == pytest.approx(1)
    assert total_ratio(base, own) == pytest.approx(4 / 5)


def test_the_same_seed_gives_the_same_interval() -> None:
    base, own = [[1.0 + prompt**2] for prompt in range(15)], [[1.0]] * 15
    assert paired_speedup(base, own, seed=3) == paired_speedup(base, own, seed=3)
    assert paired_speedup(base, own, seed=3, resamples=99) != paired_speedup(base, own, seed=4, resamples=99)


@pytest.mark.parametrize("num_prompts", [6, 12, 40])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(num_prompts: int) -> None:
    rng = np.random.default_rng(num_prompts)
    truth, runs, covered = 1.5, 400, 0
    for run in range(runs):
        logs_P = math.log(truth) + 0.3 * rng.standard_normal(num_prompts)
        interval = paired_speedup(np.exp(logs_P)[:, None].tolist(), [[1.0]] * num_prompts, resamples=600, seed=run)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / runs <= 0.98


@pytest.mark.parametrize(("freedom", "quantile"), [(3, -3.182), (5, -2.571), (11, -2.201), (60, -2.000)])
def test_students_t_agrees_with_the_tables(freedom: int, quantile: float) -> None:
    assert _student_t(0.025, freedom) == pytest.approx(quantile, rel=0.01)


@pytest.mark.parametrize(
    ("base", "own", "says"),
    [
        ([], [], "no pair"),
        ([[]], [[]], "no pair"),
        ([[1.0]], [[1.0], [1.0]], "different prompts or repeats"),
        ([[1.0, 2.0]], [[1.0]], "different prompts or repeats"),
        ([[0.0]], [[1.0]], "must be positive"),
        ([[1.0]], [[math.inf]], "must be positive"),
        ([[1.0]], [[math.nan]], "must be positive"),
    ],
)
def test_what_cannot_be_compared_is_refused(base: list[list[float]], own: list[list[float]], says: str) -> None:
    with pytest.raises(RunError, match=says):
        paired_speedup(base, own)
    with pytest.raises(RunError, match=says):
        total_ratio(base, own)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_within_the_values(values: list[float]) -> None:
    found = percentiles(values)
    assert found is not None
    assert min(values) <= found.p50 <= found.p95 <= found.p99 <= max(values)


def test_percentiles_of_a_known_list_and_of_nothing() -> None:
    found = percentiles([float(value) for value in range(101)])
    assert found is not None
    assert (found.p50, found.p95, found.p99) == (50, 95, 99)
    assert percentiles([]) is None
