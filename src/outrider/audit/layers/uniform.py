"""Tests that values are uniform on [0, 1], and what they can see.

With D the largest distance of the empirical distribution of n values from the uniform one, chance exceeds it with a
probability of at most 2 exp(-2 n D^2) (Massart, 1990), at any n. Holm's procedure over all m tests of an audit keeps
the probability of any false alarm at or below alpha. The strictest test alarms from

    D_0 = sqrt(ln(2 m / alpha) / (2 n))

on. Values whose mean distribution lies at a distance of D_0 + sqrt(ln(20) / (2 n)) raise that alarm with a probability
of at least 95 % (Hoeffding's inequality; it holds for values that depend on those before).

Example: n = 2048, m = 4 and alpha = 0.001 see a distance of 0.047 + 0.027 = 0.074.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

__all__ = ["Uniformity", "chance_of", "detectable_distance", "holm", "largest_distance"]

MISSED = 0.05
"""Probability with which a fault of the stated size is missed."""


@dataclass(frozen=True, kw_only=True)
class Uniformity:
    """Test of some values.

    distance   largest distance of their distribution from the uniform one
    chance     bound on the probability of such a distance
    """

    num_values: int
    distance: float
    chance: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        distance = largest_distance(values)
        return cls(num_values=len(values), distance=distance, chance=chance_of(distance, len(values)))


def largest_distance(values: Sequence[float]) -> float:
    """Return the largest distance of the empirical distribution from the uniform one (Kolmogorov's D).

    >>> largest_distance([0.5])
    0.5
    """
    ordered, count = sorted(values), len(values)
    return max(max((place + 1) / count - value, value - place / count) for place, value in enumerate(ordered))


def chance_of(distance: float, count: int) -> float:
    """Return a bound on the probability of such a distance, or a larger one, of `count` uniform values."""
    return min(1.0, 2 * math.exp(-2 * count * distance**2))


def detectable_distance(count: int, num_tests: int, alpha: float) -> float:
    """Return a distance that `count` values show with 95 % in the strictest of the tests.

    >>> round(detectable_distance(2048, 4, 0.001), 3)
    0.074
    """
    return math.sqrt(math.log(2 * num_tests / alpha) / (2 * count)) + math.sqrt(math.log(1 / MISSED) / (2 * count))


def holm(chances: Sequence[float], alpha: float) -> list[bool]:
    """Return which tests are rejected, with a probability of at most `alpha` that a true one is among them.

    >>> holm([0.03, 0.01], 0.05), holm([0.03, 0.04], 0.05)
    ([True, True], [False, False])
    """
    rejected = [False] * len(chances)
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda place: chances[place])):
        if chances[place] > alpha / (len(chances) - rank):
            break
        rejected[place] = True
    return rejected
