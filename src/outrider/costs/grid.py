"""A table of measured numbers on a grid, read between and beyond its points.

Between points it is linear in every coordinate (multilinear), so it returns what was measured at a point. Measurements
are noisy, but costs grow with the work: the values are first raised to their running maximum along every axis, so that
a larger call never costs less. Before an axis' first point the value is constant; beyond the last point it continues
with the last cell's slope,

    f(x) = f(x cut to the grid) + sum over axes of (excess along that axis) * (slope at the others' cut coordinates)

where slopes too are running maxima over the other axes. All terms grow in every coordinate, and so does f.

Worked example: values 1, 3, 2 at 1, 2, 4. They count as 1, 3, 3; at 1.5 the value is 2, at 0 it is 1, and at 8 it is 3.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Self, final

import numpy as np

from outrider.errors import RunError

__all__ = ["Grid"]

LARGEST: Final = 1e12
MOST_AXES: Final = 4


@final
class Grid:
    """Non-negative seconds (or any other cost) on the product of named axes.

    Args:
        axes: the points of each axis by its name, strictly rising.
        seconds: nested in the order of the axes; kept as given in `measured`, read as running maxima.
    """

    def __init__(self, axes: Mapping[str, tuple[float, ...]], seconds: Any) -> None:
        self.axes = {name: tuple(points) for name, points in axes.items()}
        self.measured = np.asarray(seconds, dtype=np.float64)
        assert self.measured.shape == tuple(map(len, self.axes.values())), "one value for every point of the grid"
        assert all(low < high for points in self.axes.values() for low, high in pairwise(points)), "points must rise"
        rising = _running_maximum(self.measured)
        self._points = tuple(self.axes.values())
        self._values: tuple[float, ...] = tuple(rising.ravel().tolist())
        self._strides = tuple(stride // rising.itemsize for stride in np.ascontiguousarray(rising).strides)
        self._rising = rising

    def __call__(self, *point: float) -> float:
        """Return the value at one coordinate per axis."""
        value = self._at(0, 0, [_place(points, at) for points, at in zip(self._points, point, strict=True)])
        for axis, points in enumerate(self._points):
            if point[axis] > points[-1]:
                value += self._excess(axis, point)
        return value

    def _at(self, axis: int, offset: int, places: "list[tuple[int, float]]") -> float:
        if axis == len(places):
            return self._values[offset]
        index, part = places[axis]
        stride = self._strides[axis]
        low = self._at(axis + 1, offset + index * stride, places)
        if not part:
            return low
        return low + part * (self._at(axis + 1, offset + (index + 1) * stride, places) - low)

    def _excess(self, axis: int, point: tuple[float, ...]) -> float:
        """Return what coordinates beyond the last point of an axis add, with the slope taken on the grid."""
        slope = self._slopes[axis]
        if slope is None:
            return 0.0
        others = [min(at, points[-1]) for at, points in zip(point, self._points, strict=True)]
        del others[axis]
        return (point[axis] - self._points[axis][-1]) * slope(*others)

    @cached_property
    def _slopes(self) -> tuple["Grid | None", ...]:
        """Slope of the last cell of each axis, over the other axes; None for an axis of one point."""
        found: list[Grid | None] = []
        for axis, (name, points) in enumerate(self.axes.items()):
            if len(points) < 2:
                found.append(None)
                continue
            rise = self._rising.take(-1, axis) - self._rising.take(-2, axis)
            others = {other: theirs for other, theirs in self.axes.items() if other != name}
            found.append(Grid(others, rise / (points[-1] - points[-2])))
        return tuple(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.axes == other.axes and np.array_equal(self.measured, other.measured)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join several grids that share all axes but the first, whose points differ."""
        name = next(iter(parts[0].axes))
        parts = sorted(parts, key=lambda part: part.axes[name])
        points = tuple(point for part in parts for point in part.axes[name])
        return cls({**parts[0].axes, name: points}, np.concatenate([part.measured for part in parts]))

    @classmethod
    def quantile(cls, grids: Sequence[Self], share: float) -> Self:
        """Return a quantile of several grids of the same points, point by point; a share of 0.5 is the median."""
        assert all(grid.axes == grids[0].axes for grid in grids), "the same points"
        return cls(grids[0].axes, np.quantile([grid.measured for grid in grids], share, axis=0))

    def to_plain(self) -> dict[str, Any]:
        """Return the axes by name and `seconds`, nested in their order."""
        return {**{name: list(points) for name, points in self.axes.items()}, "seconds": self.measured.tolist()}

    @classmethod
    def from_plain(cls, names: Sequence[str], value: Any, where: str) -> Self:
        """
        Raises:
            RunError: if an axis is missing or does not rise, or the values do not fit the axes; names `where`.
        """
        if not isinstance(value, dict):
            raise RunError(f"{where} is not a table")
        axes = {}
        for name in names:
            points = _numbers(value.get(name))
            rising = points is not None and points.ndim == 1 and points.size and bool((np.diff(points) > 0).all())
            if points is None or not rising or points[0] < (name == "slots"):
                raise RunError(f"{where} has no rising list '{name}'")
            axes[name] = tuple(int(point) if point == int(point) else point for point in points.tolist())
        seconds = _numbers(value.get("seconds"))
        if seconds is None or seconds.shape != tuple(map(len, axes.values())) or not bool((seconds >= 0).all()):
            raise RunError(f"{where} has no number of seconds for every point of its axes")
        return cls(axes, seconds)


def _place(points: tuple[float, ...], at: float) -> tuple[int, float]:
    """Return the point at or before `at`, and the fraction of the way to the next; coordinates are clamped."""
    if at <= points[0]:
        return 0, 0.0
    if at >= points[-1]:
        return len(points) - 1, 0.0
    index = bisect_right(points, at) - 1
    return index, (at - points[index]) / (points[index + 1] - points[index])


def _numbers(value: Any) -> "np.ndarray[Any, np.dtype[np.float64]] | None":
    """Return an array of finite numbers, or None."""
    if not _holds_numbers(value):
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
    except ValueError:  # lists of different lengths
        return None
    return array


def _holds_numbers(value: Any, depth: int = MOST_AXES) -> bool:
    """Return whether it is a number, or lists of numbers; a text or true is none."""
    if isinstance(value, list):
        return depth > 0 and all(_holds_numbers(one, depth - 1) for one in value)
    return type(value) in (int, float) and abs(value) <= LARGEST


def _running_maximum(
    values: "np.ndarray[Any, np.dtype[np.float64]]",
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    for axis in range(values.ndim):
        values = np.maximum.accumulate(values, axis=axis)
    return np.ascontiguousarray(values)
