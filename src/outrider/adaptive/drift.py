"""The drift of forwards from their cost table, learned from the steps themselves.

The machine may have been slower when the table was measured, or be slower now. A forward over nodes is charged the
table's seconds times

    drift = median(seen / table, with about as many nodes) / median(seen / table, without nodes)

of the last steps with as many slots. "About as many" is the same number of binary digits; without observations, the
nearest smaller kind counts, then the nearest larger one.

Evidence expires, so that a slow minute does not end drafting for good. What n steps showed, at least `SURE` (of plain
steps `FEW`), is believed for `PATIENCE * n` steps. Then the table is trusted and tried again; evidence that is
confirmed is believed longer each time, up to `MOST_COUNTED` steps' worth.

Worked example: the table says 15 ms plain and 16 ms with 4 nodes. Plain steps take 12 ms and those with 4 to 7 nodes 16
ms: the ratios are 0.8 and 1, so the drift is 1.25. If that stops the drafts after five of them, it is believed for 40
steps, then after five more for 80.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final, final

__all__ = ["Drift"]

RECENT: Final = 15
SURE: Final = 5
FEW: Final = 2
PATIENCE: Final = 8
MOST_COUNTED: Final = 25
MOST: Final = 3.0
EVERY: Final = 4
"""The medians are updated in every fourth step."""


@dataclass
class _Seen:
    """Ratios seen / table of one kind of forward: the last ones, how many ever, and the step of the last one."""

    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    num_ever: int = 0
    last: int = 0

    def believed(self, now: int) -> bool:
        return now - self.last <= PATIENCE * min(self.num_ever, MOST_COUNTED)


@final
class Drift:
    """Medians of seen / table, by slots and kinds of nodes."""

    def __init__(self) -> None:
        self._now = 0
        self._seen: dict[int, dict[int, _Seen]] = {}
        self._factors: dict[int, tuple[int, list[float]]] = {}

    def add(self, num_slots: int, num_nodes: int, ratio: float) -> None:
        """Record one step whose forward took `ratio` times the seconds of the table."""
        self._now += 1
        seen = self._seen.setdefault(num_slots, {}).setdefault(num_nodes.bit_length(), _Seen())
        if not seen.believed(self._now):
            seen.ratios.clear()
        seen.ratios.append(ratio)
        seen.num_ever += 1
        seen.last = self._now

    def factor(self, num_slots: int, num_nodes: int) -> float:
        """Return the factor for the table's forward, relative to plain forwards; 1 while unknown."""
        learnt_at, factors = self._factors.get(num_slots, (-EVERY, []))
        if self._now - learnt_at >= EVERY:
            factors = self._learnt(num_slots)
            self._factors[num_slots] = self._now, factors
        return factors[min(num_nodes.bit_length(), len(factors) - 1)]

    def _learnt(self, num_slots: int) -> list[float]:
        """Return the factors by number of binary digits; the last one holds for all larger numbers."""
        believed = {kind: seen for kind, seen in self._seen.get(num_slots, {}).items() if seen.believed(self._now)}
        plain = believed.pop(0, _Seen()).ratios
        known = {kind: median(seen.ratios) for kind, seen in believed.items() if len(seen.ratios) >= SURE}
        if len(plain) < FEW or not known:
            return [1.0]
        usual = median(plain) if len(plain) >= SURE else min(plain)
        factors = {kind: min(max(ratio / usual, 1 / MOST), MOST) for kind, ratio in known.items()}
        nearest = factors[min(factors)]
        learnt = [1.0]
        for kind in range(1, max(factors) + 1):
            nearest = factors.get(kind, nearest)
            learnt.append(nearest)
        return learnt
