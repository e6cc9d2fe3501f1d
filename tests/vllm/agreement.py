"""Do two engines draft the same tokens with one head?

Neither engine shows its drafts, but both say how far each step accepted, and greedy texts are the same. So a head that
is read wrongly betrays itself in three places, from coarse to fine:

    texts    equal, or parted where rounding explains it; a wrong head cannot change a text, a wrong engine can
    rates    the share of steps that accepted to depth 1, 2, ...: ours inside the Wilson interval of theirs
    steps    where both engines begin a step at the same token of the same text, both accept equally many of it

Steps are compared only where a whole draft fitted in front of the answer's end and of the place where texts parted.

Example: with drafts of 3 and an answer of 48 tokens, a step behind 44 tokens is the last one that is compared: it may
write the tokens 44 to 47.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

__all__ = ["Interval", "Played", "Shared", "Step", "check_drafts", "rates_of", "shared_steps", "wilson"]

LEAST_SHARE = 0.9
"""Of the steps that both engines began at the same place, those that accept equally many."""
LEAST_COMMON = 0.5
"""Of their comparable steps, those that our engine began at the same place."""


class Step(NamedTuple):
    """One step with a whole draft: tokens of the answer in front of it, and how many drafted tokens it accepted."""

    start: int
    num_accepted: int


@dataclass(frozen=True, kw_only=True)
class Played:
    """What one engine made of the prompts.

    answers               token ids, one answer for each prompt
    steps                 of each answer
    num_drafts            as the engine counts them
    num_accepted_per_pos  of those drafts, how many were accepted to depth 1, 2, ...
    """

    answers: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[Step, ...], ...]
    num_drafts: int
    num_accepted_per_pos: tuple[int, ...]


class Interval(NamedTuple):
    low: float
    high: float


class Shared(NamedTuple):
    """Comparable steps of theirs, those of them that ours has at the same place, and of these the equal ones."""

    num_theirs: int
    num_common: int
    num_equal: int


def wilson(count: int, total: int, confidence: float = 0.95) -> Interval:
    """The score interval of a share (Wilson 1927).

    >>> [round(end, 3) for end in wilson(5, 10)]
    [0.237, 0.763]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, extra = count / total, z * z / total
    middle = (share + extra / 2) / (1 + extra)
    half = z * sqrt(share * (1 - share) / total + extra / (4 * total)) / (1 + extra)
    return Interval(middle - half, middle + half)


def rates_of(played: Played) -> list[float]:
    """Acceptance by position."""
    return [count / played.num_drafts for count in played.num_accepted_per_pos]


def shared_steps(ours: Played, theirs: Played, num_nodes: int, parted: Sequence[int | None]) -> Shared:
    """Compare step by step.

    Args:
        num_nodes: drafted tokens per step.
        parted: for each answer the place where texts part, None where they do not.
    """
    num_theirs = num_common = num_equal = 0
    for own, other, answer, place in zip(ours.steps, theirs.steps, theirs.answers, parted, strict=True):
        end = len(answer) if place is None else place
        known = dict(own)
        comparable = [step for step in other if step.start + num_nodes + 1 <= end]
        common = [step for step in comparable if step.start in known]
        num_theirs += len(comparable)
        num_common += len(common)
        num_equal += sum(known[step.start] == step.num_accepted for step in common)
    return Shared(num_theirs, num_common, num_equal)


def check_drafts(ours: Played, theirs: Played, num_nodes: int, parted: Sequence[int | None]) -> None:
    """Whether both engines drafted the same, as far as acceptance can tell.

    Raises:
        AssertionError: naming the position, or the share of steps, that differs.
    """
    assert len(theirs.num_accepted_per_pos) == num_nodes, f"it drafts {len(theirs.num_accepted_per_pos)} tokens"
    for position, (rate, count) in enumerate(zip(rates_of(ours), theirs.num_accepted_per_pos, strict=True), start=1):
        low, high = wilson(count, theirs.num_drafts)
        assert low <= rate <= high, (
            f"acceptance at position {position} is {rate:.3f} with us and {count / theirs.num_drafts:.3f} there, "
            f"whose interval is {low:.3f} to {high:.3f}"
        )
    shared = shared_steps(ours, theirs, num_nodes, parted)
    assert shared.num_common >= LEAST_COMMON * shared.num_theirs > 0, (
        f"acceptance: only {shared.num_common} of {shared.num_theirs} steps begin where one of ours does"
    )
    assert shared.num_equal >= LEAST_SHARE * shared.num_common, (
        f"acceptance: only {shared.num_equal} of {shared.num_common} steps at the same place accept equally many"
    )
