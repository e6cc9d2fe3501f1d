"""The cost of proposing, learned from the steps themselves.

Each shape (slots, nodes of the slot that drafts most) has the median of its last steps, because a mean would follow
the pauses of the machine. Below `SURE` steps the minimum is taken, because the first steps may include compilation.
Between measured numbers of nodes the cost is linear; beyond the largest it continues the last slope, and a single
measurement is used as it is. It never counts as more than proportional to a smaller draft, so that one slow step cannot
keep a shape from being tried again.

A proposer with a cache of its own has to read its pending tokens (a prompt, and what was emitted while it did not
draft) before it drafts. The cost of one such token is the median of the extra time of those steps, per token. A short
read costs more a token, and the first one compiles, so a read says nothing of those more than `REACH` times as long.

Worked example: one node took 2 ms and four took 5 ms. Three nodes: 4 ms; eight: 9 ms.
"""

from bisect import bisect_right
from collections import deque
from statistics import median
from typing import Final, final

from outrider.costs.tables import DraftCosts

__all__ = ["OnlineDraftCost"]

RECENT: Final = 15
SURE: Final = 5
REACH: Final = 8
EVERY: Final = 4
"""With `RECENT` steps in hand, the median is updated in every fourth step."""


@final
class OnlineDraftCost(DraftCosts):
    """Medians of observed seconds, by slots and nodes."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[int, deque[float]]] = {}
        self._typical: dict[int, dict[int, float]] = {}
        self._num_added = 0
        self._answers: dict[tuple[int, int], float] = {}
        self._pending: dict[int, deque[tuple[int, float]]] = {}

    def add(self, num_slots: int, num_nodes: int, seconds: float) -> None:
        """Record one step; `num_nodes` is that of the slot that drafted most, 0 without a draft."""
        seen = self._seen.setdefault(num_slots, {}).setdefault(num_nodes, deque(maxlen=RECENT))
        seen.append(seconds)
        self._num_added += 1
        if len(seen) < RECENT or self._num_added % EVERY == 0:
            self._typical.setdefault(num_slots, {})[num_nodes] = min(seen) if len(seen) < SURE else median(seen)
            self._answers.clear()

    def add_pending(self, num_slots: int, num_nodes: int, num_pending: int, seconds: float) -> None:
        """Record one step that read `num_pending` tokens before it drafted."""
        usual_s = self.propose_s(num_slots, num_nodes, num_nodes)
        seen = self._pending.setdefault(num_pending.bit_length(), deque(maxlen=RECENT))
        seen.append((num_pending, max(0.0, seconds - usual_s) / num_pending))

    def pending_s(self, num_pending: int) -> float:
        """Return the seconds that reading this many pending tokens adds; 0 while unknown."""
        known = [
            token_s for seen in self._pending.values() for num_read, token_s in seen if num_read * REACH >= num_pending
        ]
        return num_pending * median(known) if known else 0.0

    def num_seen(self, num_nodes: int) -> int:
        """Count the remembered steps with that many nodes, over all numbers of slots."""
        return sum(len(by_nodes.get(num_nodes, ())) for by_nodes in self._seen.values())

    @property
    def most_nodes(self) -> int:
        """Largest number of nodes of any recorded step."""
        return max((num_nodes for by_nodes in self._seen.values() for num_nodes in by_nodes), default=0)

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return self.extra_s(num_slots, depth) + self.idle_s(num_slots)

    def idle_s(self, num_slots: int) -> float:
        """Return the seconds of a step without a draft; 0 while unknown."""
        return self._answer(num_slots, 0)

    def extra_s(self, num_slots: int, num_nodes: int) -> float:
        """Return the extra seconds of drafting up to `num_nodes` per slot; 0 while unknown."""
        return max(0.0, self._answer(num_slots, num_nodes) - self._answer(num_slots, 0)) if num_nodes else 0.0

    def _answer(self, num_slots: int, num_nodes: int) -> float:
        """Return the seconds read from the nearest number of slots; cached until the next change."""
        key = (num_slots, num_nodes)
        if key not in self._answers:
            known = sorted(self._nearest(num_slots, drafting=num_nodes > 0).items())
            self._answers[key] = _read(known, num_nodes) if known else 0.0
        return self._answers[key]

    def _nearest(self, num_slots: int, drafting: bool) -> dict[int, float]:
        """Return the typical seconds by nodes for the nearest number of slots that has any."""
        for slots in sorted(self._typical, key=lambda other: (abs(other - num_slots), other)):
            known = {nodes: seconds for nodes, seconds in self._typical[slots].items() if (nodes > 0) == drafting}
            if known:
                return known
        return {}


def _read(points: list[tuple[int, float]], at: int) -> float:
    """Interpolate `points`, sorted, linearly; the result is at most proportional to any smaller point."""
    place = bisect_right([nodes for nodes, _ in points], at)
    if place == 0 or at == 0:
        return points[0][1]
    if place < len(points) or len(points) > 1:
        (low, below), (high, above) = points[min(place, len(points) - 1) - 1 : min(place, len(points) - 1) + 1]
        value = max(below + (above - below) * (at - low) / (high - low), 0.0)
    else:
        value = points[0][1]
    return min([value, *(seconds * at / nodes for nodes, seconds in points[:place])])
