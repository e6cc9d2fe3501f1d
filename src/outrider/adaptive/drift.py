"""How far forwards have moved from their table, learnt from the steps themselves.

A table may have been measured while something else slowed the machine, or the machine may be slowed now. What a choice
asks is only how much longer a step gets by its nodes. So a forward over nodes is charged what the table says, times

    drift = median(seen / table, with about as many nodes) / median(seen / table, without nodes)

of the last steps, at the same number of slots. "About as many" is the same number of binary digits; where none was
seen, the nearest smaller kind counts, then the nearest larger one.

Evidence has an age. The machine may have been slow just while a few drafts were verified, and if that were believed for
good, none would be verified again and nobody would find out. So what n steps have said, at least `SURE` (of plain steps
`FEW` will do, for an engine begins with so many), is believed for `PATIENCE * n` steps; then it is forgotten, the table
is trusted, and tried again. What is confirmed again and again is believed for longer each time, up to `MOST_COUNTED`
steps.

Worked example: the table says 15 ms plain and 16 ms with 4 nodes. Plain steps take 12 ms and those with 4 to 7 nodes
16 ms: the ratios are 0.8 and 1, so the drift is 1.25, and drafting costs a third of a plain step and not a fifteenth.
If that stops the drafts after five of them, it is believed for 40 steps, then after five more for 80.
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
"""The medians are taken anew in every fourth step."""


@dataclass
class _Seen:
    """What forwards of one kind took, over their table: the last ones, how many ever, and when the last was."""

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
        """One step, whose forward took `ratio` times what the table says."""
        self._now += 1
        seen = self._seen.setdefault(num_slots, {}).setdefault(num_nodes.bit_length(), _Seen())
        if not seen.believed(self._now):
            seen.ratios.clear()
        seen.ratios.append(ratio)
        seen.num_ever += 1
        seen.last = self._now

    def factor(self, num_slots: int, num_nodes: int) -> float:
        """What to multiply the table's forward by, in plain forwards that the table has right; 1 while unknown."""
        learnt_at, factors = self._factors.get(num_slots, (-EVERY, []))
        if self._now - learnt_at >= EVERY:
            factors = self._learnt(num_slots)
            self._factors[num_slots] = self._now, factors
        return factors[min(num_nodes.bit_length(), len(factors) - 1)]

    def _learnt(self, num_slots: int) -> list[float]:
        """By number of binary digits; the last is that of all larger numbers too."""
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
