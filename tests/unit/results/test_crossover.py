"""Up to which batch a method pays."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.results.crossover import crossing, curves_of
from outrider.results.rows import Report, Row
from outrider.results.statistics import Interval


def row(method: str, batch: int, speedup: float, **changes: object) -> Row:
    fields: dict[str, object] = {"engine": "outrider", "category": "mixed", "temperature": 0.0, "num_prompts": 4}
    interval = Interval(point=speedup, low=0.8 * speedup, high=1.25 * speedup)
    return Row(method=method, batch=batch, speedup=interval, **(fields | changes))


def report(*rows: Row) -> Report:
    return Report(run=None, target="t", dtype="bfloat16", device="cpu", commit=None, rows=rows)


@given(
    at=st.floats(0.1, 5.9),
    slope=st.floats(0.05, 2.0),
)
def test_a_straight_line_is_crossed_where_it_is_one(at: float, slope: float) -> None:
    batches = [1, 2, 4, 8, 16, 32, 64]
    speedups = [math.exp(slope * (at - math.log2(batch))) for batch in batches]
    assert crossing(batches, speedups) == pytest.approx(2**at)


def test_the_first_loss_counts_and_ends_are_named() -> None:
    assert crossing([1, 2, 4, 8], [1.2, 0.9, 1.1, 0.8]) < 2
    assert crossing([1, 2], [0.9, 1.5]) == 0
    assert crossing([1, 2], [1.5, 1.0]) == math.inf


def test_curves_are_read_off_a_report() -> None:
    wins = [row("wins", batch, 3.0) for batch in (1, 2, 4)]
    falls = [row("falls", batch, speedup) for batch, speedup in ((4, 0.5), (1, 2.0), (2, 1.0))]
    curves = curves_of(report(*wins, *falls, row("once", 1, 1.0)))
    assert [curve.label for curve in curves] == ["wins", "falls"]
    assert curves[1].batches == (1, 2, 4)
    assert curves[0].words == "above 4 [above 4, above 4]"
    assert curves[1].words == "2.0 [1.6, 2.5]"
    assert curves_of(report(*(row("x", batch, 0.5, scripted=True) for batch in (1, 2))))[0].label == "x (scripted)"


def test_several_categories_are_judged_by_their_sum() -> None:
    rows = [
        row("m", batch, speedup, category=category)
        for category, speedup in (("a", 5.0), ("b", 0.1), ("all", 2.0))
        for batch in (1, 2)
    ]
    (curve,) = curves_of(report(*rows))
    assert curve.points == [2.0, 2.0]
    assert curves_of(report(*(one for one in rows if one.category != "all"))) == []


def test_a_crossover_without_an_interval_says_so_and_one_whose_interval_is_everything_is_even() -> None:
    bare = [row("bare", batch, 1.5 / batch) for batch in (1, 2)]
    bare = [replace(one, speedup=Interval(point=one.speedup.point, low=None, high=None)) for one in bare if one.speedup]
    close = [row("close", batch, speedup) for batch, speedup in ((1, 1.1), (2, 0.95), (4, 0.9))]
    curves = curves_of(report(*bare, *close))
    assert curves[0].words == "1.5 [no interval]"
    assert curves[1].words == "1.6 [below 1, above 4], about even"
