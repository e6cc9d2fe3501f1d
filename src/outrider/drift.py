"""How far forwards have moved from their table, learnt from the steps themselves.

A table may have been measured while something else slowed the machine, or the machine may be slowed now. What a choice
asks is only how much longer a step gets by its nodes. So a forward over nodes is charged what the table says, times

    drift = median(seen / table, with about as many nodes) / median(seen / table, without nodes)

of the last steps, at the same number of slots. "About as many" is the same number of binary digits; where none was
seen, the nearest smaller kind counts, then the nearest larger one. Until `SURE` steps of a kind were seen the table is
trusted; of plain steps the faster of `FEW` will do, for an engine begins with so many. A slow spell during which
nothing but drafts is seen makes drafts look dear; then plain steps follow, are seen to be slow too, and the drift goes
back.

Worked example: the table says 15 ms plain and 16 ms with 4 nodes. Plain steps take 12 ms and those with 4 to 7 nodes
16 ms: the ratios are 0.8 and 1, so the drift is 1.25, and drafting costs a third of a plain step and not a fifteenth.
"""

from collections import deque
from statistics import median
from typing import Final, final

__all__ = ["Drift"]

RECENT: Final = 15
SURE: Final = 5
FEW: Final = 2
MOST: Final = 3.0


@final
class Drift:
    """Medians of seen / table, by slots and kinds of nodes."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[int, deque[float]]] = {}
        self._factors: dict[int, list[float]] = {}

    def add(self, num_slots: int, num_nodes: int, ratio: float) -> None:
        """One forward that took `ratio` times what the table says."""
        seen = self._seen.setdefault(num_slots, {}).setdefault(num_nodes.bit_length(), deque(maxlen=RECENT))
        seen.append(ratio)
        self._factors.pop(num_slots, None)

    def factor(self, num_slots: int, num_nodes: int) -> float:
        """What to multiply the table's forward by, in plain forwards that the table has right; 1 while unknown."""
        if num_slots not in self._factors:
            self._factors[num_slots] = self._learnt(num_slots)
        factors = self._factors[num_slots]
        return factors[min(num_nodes.bit_length(), len(factors) - 1)]

    def _learnt(self, num_slots: int) -> list[float]:
        """By number of binary digits; the last is that of all larger numbers too."""
        seen = self._seen.get(num_slots, {})
        plain = seen.get(0, ())
        known = {kind: median(some) for kind, some in seen.items() if kind and len(some) >= SURE}
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
