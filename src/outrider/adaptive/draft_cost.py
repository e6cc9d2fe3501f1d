"""What proposing costs, learnt from the steps themselves.

One number per shape (slots, nodes of the slot that drafts most), the median of the last steps of that shape: a machine
has pauses, and a mean would believe them. Of fewer than `SURE` steps the least is taken, for the first ones may pay for
compilation. Between measured numbers of nodes the cost is linear; beyond the largest it goes on like the last two, and
with one alone it stays the same, which is checked as soon as it is tried. It never counts as more than proportional to
a smaller draft, so that one unlucky step cannot keep a shape from being tried again.

A proposer with a cache of its own has to read a prompt, and what was emitted while it did not draft, before it drafts
again. Such steps say what a token of that costs: the median of what they took beyond the usual, by token.

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
EVERY: Final = 4
"""Once there are enough, the median is taken anew in every fourth step."""


@final
class OnlineDraftCost(DraftCosts):
    """Medians of what was seen, by slots and nodes."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[int, deque[float]]] = {}
        self._typical: dict[int, dict[int, float]] = {}
        self._num_added = 0
        self._answers: dict[tuple[int, int], float] = {}
        self._pending: deque[float] = deque(maxlen=RECENT)

    def add(self, num_slots: int, num_nodes: int, seconds: float) -> None:
        """One step; `num_nodes` of the slot that drafted most, 0 for one without a draft."""
        seen = self._seen.setdefault(num_slots, {}).setdefault(num_nodes, deque(maxlen=RECENT))
        seen.append(seconds)
        self._num_added += 1
        if len(seen) < RECENT or self._num_added % EVERY == 0:
            self._typical.setdefault(num_slots, {})[num_nodes] = min(seen) if len(seen) < SURE else median(seen)
            self._answers.clear()

    def add_pending(self, num_slots: int, num_nodes: int, num_pending: int, seconds: float) -> None:
        """One step that first read `num_pending` tokens more than others do."""
        usual_s = self.propose_s(num_slots, num_nodes, num_nodes)
        self._pending.append(max(0.0, seconds - usual_s) / num_pending)

    def pending_s(self, num_pending: int) -> float:
        """What reading so many tokens more takes; 0 while unknown."""
        return num_pending * median(self._pending) if self._pending else 0.0

    def num_seen(self, num_nodes: int) -> int:
        """Steps with that many nodes, over all numbers of slots, of those that are remembered."""
        return sum(len(by_nodes.get(num_nodes, ())) for by_nodes in self._seen.values())

    @property
    def most_nodes(self) -> int:
        """Of all steps seen."""
        return max((num_nodes for by_nodes in self._seen.values() for num_nodes in by_nodes), default=0)

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return self.extra_s(num_slots, depth) + self.idle_s(num_slots)

    def idle_s(self, num_slots: int) -> float:
        """Of a step without a draft; 0 while unknown."""
        return self._answer(num_slots, 0)

    def extra_s(self, num_slots: int, num_nodes: int) -> float:
        """What a step pays for drafting up to `num_nodes` per slot, over one without; 0 while unknown."""
        return max(0.0, self._answer(num_slots, num_nodes) - self._answer(num_slots, 0)) if num_nodes else 0.0

    def _answer(self, num_slots: int, num_nodes: int) -> float:
        """Read from what is known for the nearest number of slots; kept until something new is known."""
        key = (num_slots, num_nodes)
        if key not in self._answers:
            known = sorted(self._nearest(num_slots, drafting=num_nodes > 0).items())
            self._answers[key] = _read(known, num_nodes) if known else 0.0
        return self._answers[key]

    def _nearest(self, num_slots: int, drafting: bool) -> dict[int, float]:
        """What is known for the nearest number of slots that has any."""
        for slots in sorted(self._typical, key=lambda other: (abs(other - num_slots), other)):
            known = {nodes: seconds for nodes, seconds in self._typical[slots].items() if (nodes > 0) == drafting}
            if known:
                return known
        return {}


def _read(points: list[tuple[int, float]], at: int) -> float:
    """Piecewise linear through `points`, sorted, no more than proportional to any of them."""
    place = bisect_right([nodes for nodes, _ in points], at)
    if place == 0 or at == 0:
        return points[0][1]
    if place < len(points) or len(points) > 1:
        (low, below), (high, above) = points[min(place, len(points) - 1) - 1 : min(place, len(points) - 1) + 1]
        value = max(below + (above - below) * (at - low) / (high - low), 0.0)
    else:
        value = points[0][1]
    return min([value, *(seconds * at / nodes for nodes, seconds in points[:place])])
