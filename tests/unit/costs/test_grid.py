"""Reading a table between and beyond its points."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.costs.grid import Grid
from outrider.errors import RunError

NAMES = ("slots", "rows", "contexts")


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    axes = {}
    for name in NAMES:
        points = draw(st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True))
        axes[name] = tuple(sorted(points))
    shape = tuple(map(len, axes.values()))
    seconds = draw(st.lists(st.floats(0, 10), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return Grid(axes, np.array(seconds).reshape(shape))


points = st.tuples(*[st.floats(0, 200)] * 3)


@settings(deadline=None)
@given(grids())
def test_a_grid_gives_back_its_points_raised_to_what_smaller_calls_cost(grid: Grid) -> None:
    slots, rows, contexts = grid.axes.values()
    for i, s in enumerate(slots):
        for j, r in enumerate(rows):
            for k, c in enumerate(contexts):
                assert grid(s, r, c) == grid.measured[: i + 1, : j + 1, : k + 1].max()


@settings(deadline=None)
@given(grids(), points, points)
def test_a_larger_call_never_costs_less(grid: Grid, one: tuple[float, ...], other: tuple[float, ...]) -> None:
    small = tuple(map(min, one, other))
    large = tuple(map(max, one, other))
    assert grid(*small) <= grid(*large) * (1 + 1e-12) + 1e-12


@settings(deadline=None)
@given(grids(), points)
def test_before_the_first_point_nothing_gets_cheaper(grid: Grid, point: tuple[float, ...]) -> None:
    first = tuple(axis[0] for axis in grid.axes.values())
    assert grid(*map(max, point, first)) == grid(*point)


@settings(deadline=None)
@given(st.floats(0, 5), st.floats(0, 5), st.floats(0, 5), points)
def test_a_plane_is_read_exactly_everywhere(
    base: float, by_slot: float, by_row: float, point: tuple[float, ...]
) -> None:
    slots, rows = (0.0, 2.0, 7.0), (0.0, 1.0, 8.0)
    grid = Grid({"slots": slots, "rows": rows}, [[base + by_slot * s + by_row * r for r in rows] for s in slots])
    slot, row, _ = point
    assert grid(slot, row) == pytest.approx(base + by_slot * slot + by_row * row, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(grids())
def test_json_there_and_back(grid: Grid) -> None:
    again = Grid.from_plain(NAMES, grid.to_plain(), "table")
    assert again == grid
    assert again(3, 5, 100) == grid(3, 5, 100)


def test_joining_and_the_median_of_grids() -> None:
    one, two, four = (Grid({"slots": (slots,), "rows": (1, 8)}, [[slots, 2 * slots]]) for slots in (1, 2, 4))
    joined = Grid.joined([four, one, two])
    assert joined == Grid({"slots": (1, 2, 4), "rows": (1, 8)}, [[1, 2], [2, 4], [4, 8]])
    others = [Grid(joined.axes, joined.measured * factor) for factor in (0.5, 9)]
    assert Grid.quantile([joined, *others], 0.5) == joined


def test_the_worked_example() -> None:
    grid = Grid({"rows": (1, 2, 4)}, [1, 3, 2])
    assert [grid(at) for at in (0, 1, 1.5, 2, 4, 8)] == [1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "table is not a table"),
        ({"seconds": [1.0]}, "no rising list 'rows'"),
        ({"rows": [], "seconds": []}, "no rising list 'rows'"),
        ({"rows": [2, 1], "seconds": [1.0, 1.0]}, "no rising list 'rows'"),
        ({"rows": ["a"], "seconds": [1.0]}, "no rising list 'rows'"),
        ({"rows": [1, 2], "seconds": [1.0]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": [1.0, None]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": [1.0, -1.0]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": [[1.0], [1.0, 2.0]]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": ["1.0", "2.0"]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": [True, False]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": [1.0, math.nan]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": [1.0, 10**400]}, "no number of seconds"),
        ({"rows": [1, 2], "seconds": [[[[[1.0]]]], 2.0]}, "no number of seconds"),
        ({"rows": ["1"], "seconds": [1.0]}, "no rising list 'rows'"),
        ({"rows": [-1, 2], "seconds": [1.0, 1.0]}, "no rising list 'rows'"),
    ],
)
def test_damaged_tables_are_refused(value: Any, words: str) -> None:
    with pytest.raises(RunError, match=words):
        Grid.from_plain(["rows"], value, "table")
