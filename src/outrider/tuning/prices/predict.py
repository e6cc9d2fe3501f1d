"""Every setting, predicted: replayed steps at the prices of a cost table.

The speedup of a setting at a number of requests at once is the geometric mean, over the groups of all cells, of plain
decoding's seconds over its own, as in the benchmark. With the adaptive budget it is that of a run of the budget on the
clock of the tables (`outrider.tuning.replays.adaptive`). Those runs take seconds, so only promising settings have one.
How promising a chain is follows from its fixed depths: a budget that knew everything about the load, and nothing about
the single text, would take the best of them, or draft nothing.

    promise(k) = max(1, fixed(1), .., fixed(k))        trees and methods that learn: max(1, fixed)

A setting's *score* is the geometric mean over the numbers of requests.

Worked example: fixed depth 3 gives 1.6 at one request and 0.8 at four: the score is 1.13, and the promise 1.26.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Literal, NamedTuple

from outrider.results.unit import UnitResult
from outrider.tuning.candidates import Setting

__all__ = [
    "Group",
    "Pick",
    "Predicted",
    "gains_of",
    "mean_speedup",
    "predicted_choices",
    "promise_of",
    "score_of",
    "speedups_of",
]

Group = tuple[int, tuple[str, ...]]
"""A number of requests at once, and the conversations that share it."""


class Pick(NamedTuple):
    """A setting and its budget: what can be recommended."""

    text: str
    budget: Literal["fixed", "auto"]

    @property
    def label(self) -> str:
        """The name in tables, as the benchmark writes it."""
        return self.text if self.budget == "fixed" else f"{self.text} {self.budget}"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A choice with its predicted speedups, by the number of requests at once."""

    choice: Pick
    base: str
    speedups: Mapping[int, float]

    @property
    def score(self) -> float:
        return score_of(self.speedups)


def score_of(speedups: Mapping[int, float]) -> float:
    """Return the geometric mean.

    >>> round(score_of({1: 2.0, 4: 0.5}), 6)
    1.0
    """
    return exp(sum(map(log, speedups.values())) / len(speedups))


def speedups_of(units: Sequence[UnitResult], plain: Sequence[UnitResult]) -> dict[int, float]:
    """Return the speedup by the number of requests at once, over all groups that both have."""
    base = {unit.pair_key: unit for unit in plain}
    ratios: dict[int, list[float]] = {}
    for unit in units:
        if unit.pair_key in base:
            ratios.setdefault(unit.batch, []).append(_rate(base[unit.pair_key]) - _rate(unit))
    return {batch: exp(sum(logs) / len(logs)) for batch, logs in ratios.items()}


def gains_of(units: Sequence[UnitResult], plain: Sequence[UnitResult]) -> dict[Group, float]:
    """Return the logarithm of the speedup of each group."""
    base = {_group(unit): unit for unit in plain}
    return {_group(unit): _rate(base[_group(unit)]) - _rate(unit) for unit in units}


def mean_speedup(gains: Mapping[Group, float], groups: Sequence[Group]) -> float:
    """Return the geometric mean of the speedups of these groups."""
    return exp(sum(gains[group] for group in groups) / len(groups))


def _group(unit: UnitResult) -> Group:
    return unit.batch, unit.conversations


def promise_of(setting: Setting, settings: Mapping[Setting, Mapping[int, float]]) -> float:
    """Return the promise of a setting with the adaptive budget, as a score.

    Args:
        settings: speedups with a fixed budget, by the number of requests at once.
    """
    shallower = [
        speedups
        for other, speedups in settings.items()
        if setting.depth and other.base == setting.base and other.depth <= setting.depth
    ]
    own = settings[setting]
    return score_of({batch: max(1.0, own[batch], *(one[batch] for one in shallower)) for batch in own})


def predicted_choices(
    fixed: Mapping[Setting, Mapping[int, float]], adaptive: Mapping[Setting, Mapping[int, float]]
) -> list[Predicted]:
    """Return every setting under each budget that has a prediction, the best score first.

    Args:
        fixed, adaptive: speedups by the number of requests at once.
    """
    budgets: tuple[tuple[Literal["fixed", "auto"], Mapping[Setting, Mapping[int, float]]], ...]
    budgets = (("fixed", fixed), ("auto", adaptive))
    found = [
        Predicted(choice=Pick(setting.text, budget), base=setting.base, speedups=dict(speedups))
        for budget, settings in budgets
        for setting, speedups in settings.items()
    ]
    return sorted(found, key=lambda one: -one.score)


def _rate(unit: UnitResult) -> float:
    """Return the logarithm of the seconds per token."""
    assert unit.decode_s is not None, "a unit with steps"
    return log(unit.decode_s / unit.num_decode_tokens)
