"""The accuracy of a drafter along the target's own texts, and whether another one is better by more than chance.

At every position of every answer a chain was drafted and nothing of it kept (`outrider.tuning.replays.replay`), so the
first guess always reads the target's own states, and guess k the drafter's states of k - 1 steps:

    accepted_k   share of positions where guesses 1..k are right
    own_k        share of right guesses k, where 1..k-1 are right
    taught_k     share of right first guesses at those same places, k - 1 tokens later

So taught_k - own_k is what a drafter loses by reading its own states instead of the target's. `tau` walks on from where
each draft ended, as decoding does.

Two drafters are compared on the same positions. The difference of right guesses is summed over blocks of eight
positions, since neighbours share their luck, and z is the mean of these sums over its standard error.

Worked example: right guesses 2, 0, 1, 0 with chains of two: accepted is (0.5, 0.25), and own_2 is 1 of 2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, stdev
from typing import Final

from outrider.tuning.replays.replay import Key, Reach, walked
from outrider.tuning.replays.texts import Text

__all__ = ["Accuracy", "DepthAccuracy", "z_score"]

BLOCK: Final = 8


@dataclass(frozen=True, kw_only=True)
class DepthAccuracy:
    """Accuracy of the guesses at one depth; see the module's docstring. `count` places were reached."""

    depth: int
    count: int
    accepted: float
    own: float
    taught: float


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Right guesses of chains of up to `depth` at every position of the texts."""

    reaches: Mapping[Key, Reach]
    texts: Sequence[Text]
    depth: int

    @cached_property
    def rights(self) -> list[list[int]]:
        """Right guesses by text and position, at positions whose chain is not cut by the end of the answer."""
        found = []
        for text in self.texts:
            right = self.reaches[text.key].right
            found.append([min(count, self.depth) for count in right[: max(1, len(right) - self.depth)]])
        return found

    def within(self, depth: int) -> "Accuracy":
        """Return the accuracy of chains that are no longer than this."""
        return replace(self, depth=min(depth, self.depth))

    @property
    def num_positions(self) -> int:
        return sum(map(len, self.rights))

    @property
    def accepted(self) -> tuple[float, ...]:
        """Share of positions where guesses 1..k are right, by k."""
        flat = [count for right in self.rights for count in right]
        return tuple(sum(count >= k for count in flat) / max(1, len(flat)) for k in range(1, self.depth + 1))

    @property
    def mean_accepted(self) -> float:
        """Right guesses per position."""
        return sum(self.accepted)

    @property
    def tau(self) -> float:
        """Tokens per target forward, by walking along the answers."""
        steps = [step for text in self.texts for step in walked(text, self.reaches[text.key], self.depth)]
        return sum(step.num_emitted for step in steps) / max(1, len(steps))

    @property
    def depths(self) -> tuple[DepthAccuracy, ...]:
        """Accuracy by depth, as far as any place was reached."""
        found = []
        for k in range(1, self.depth + 1):
            places = [
                (count >= k, right[at + k - 1] >= 1)
                for right in self.rights
                for at, count in enumerate(right)
                if count >= k - 1 and at + k - 1 < len(right)
            ]
            if not places:
                break
            found.append(
                DepthAccuracy(
                    depth=k,
                    count=len(places),
                    accepted=self.accepted[k - 1],
                    own=sum(own for own, _ in places) / len(places),
                    taught=sum(taught for _, taught in places) / len(places),
                )
            )
        return tuple(found)


def z_score(better: Accuracy, base: Accuracy) -> float:
    """Return by how many standard errors `better` has more right guesses than `base`, on the same texts."""
    sums = []
    for mine, theirs in zip(better.rights, base.rights, strict=True):
        pairs = [one - other for one, other in zip(mine, theirs, strict=True)]
        sums += [sum(pairs[start : start + BLOCK]) for start in range(0, len(pairs), BLOCK)]
    if len(sums) < 2 or not any(sums):
        return 0.0
    error = stdev(sums) / math.sqrt(len(sums))
    return fmean(sums) / error if error else math.copysign(math.inf, sums[0])
