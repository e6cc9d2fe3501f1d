"""Costs of a step on a server that is seen from outside: plain decoding at several numbers of requests.

A step of plain decoding with A requests at once is a forward of A rows. A forward that verifies has more rows with the
same requests. So the seconds of a forward of R rows are read off between the numbers of requests that were measured:

    rows A     seconds of all requests behind their first tokens / seconds in which any was
    seconds    seconds of all requests behind their first tokens / their tokens

More requests also read more keys and values than more rows of one request do, so verifying is not priced too low by it;
what the engine does to draft and to accept is not seen, and not priced. Beyond the most rows the line goes on.

Worked example: one request takes 10 ms a token, four at once 13 ms each: a draft of one node, two rows, costs 11 ms.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, final

from outrider.costs.tables import DraftCosts, TargetCosts
from outrider.results.unit import Answer, UnitResult

__all__ = ["BytesOfDrafter", "ServedCosts", "served_costs"]

LEAST_STEP: Final = 1.25
"""A number of rows is a point of its own if it is so many times the one before: a full server queues the rest."""


@final
class ServedCosts(TargetCosts):
    """Seconds of a forward by its rows; accepting and the host are a part of them.

    Args:
        points: rows -> seconds, at least one.
    """

    def __init__(self, points: Mapping[float, float]) -> None:
        self.rows = sorted(points)
        self.seconds: list[float] = []
        for rows in self.rows:
            # more rows never take less: what says so is noise
            self.seconds.append(max([points[rows], *self.seconds[-1:]]))

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        """
        >>> ServedCosts({1: 0.010, 4: 0.013}).forward_s(1, 2, 0.0)
        0.011
        """
        if len(self.rows) == 1 or num_rows <= self.rows[0]:
            return self.seconds[0]
        at = min(max(1, bisect_left(self.rows, num_rows)), len(self.rows) - 1)
        low, high = self.rows[at - 1], self.rows[at]
        share = (num_rows - low) / (high - low)
        return self.seconds[at - 1] + share * (self.seconds[at] - self.seconds[at - 1])

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        return 0.0

    def rest_s(self, num_slots: int) -> float:
        return 0.0


@final
class BytesOfDrafter(DraftCosts):
    """A drafter that reads its weights once for every level of its draft, as fast as the target reads its own.

    Args:
        share: its bytes over the target's.
    """

    def __init__(self, share: float, target: TargetCosts) -> None:
        self.share = share
        self.target = target

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return self.share * depth * self.target.forward_s(num_slots, num_slots, 0.0)


def served_costs(plain: Iterable[UnitResult]) -> ServedCosts | None:
    """Return the costs that units of plain decoding show; None if none tells its times."""
    by_batch: dict[int, list[UnitResult]] = defaultdict(list)
    for unit in plain:
        if unit.decode_s:
            by_batch[unit.batch].append(unit)
    points: dict[float, float] = {}
    for _, units in sorted(by_batch.items()):
        answers = [answer for unit in units for answer in unit.answers]
        spent = sum(map(_behind_first_s, answers))
        tokens = sum(max(0, len(answer.tokens) - answer.first_burst) for answer in answers)
        rows = spent / sum(unit.decode_s or 0.0 for unit in units)
        if tokens and spent and (not points or rows >= LEAST_STEP * max(points)):
            points[rows] = spent / tokens
    return ServedCosts(points) if points else None


def _behind_first_s(answer: Answer) -> float:
    if answer.latency_s is None or answer.ttft_s is None:
        return 0.0
    return answer.latency_s - answer.ttft_s
