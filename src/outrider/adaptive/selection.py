"""Which nodes to verify: the set with the highest rate that is fair to those who pay for it.

A set K of nodes takes s(K) plain steps, and an owner (a slot, or all slots together) may expect t(K) tokens of it: 1
for the root and the chances m of its own nodes, as a mean over its slots. Of all sets with

    s(K) - 1 <= burst                       everybody can bear that nothing of it is right
    s(K) - s(nothing) <= t(K) - 1 + allowance    every owner expects to win, or gives a little of what it has won before

the one with the most tokens per second is taken. The best set of a size holds the likeliest nodes: they are ranked once
and taken in turn, over all slots. Where the set so far is unfair to an owner, the next node is the likeliest of the
owner that lacks most; its own nodes are what can make up for the longer step. If it has none left, or the step has
become too long, the walk ends. With one owner for all slots this is a walk down the ranking. With one owner per slot
it is a greedy search for the best fair set; `tests/unit/adaptive/test_selection.py` compares it with all sets.

A set holds no node without its parent, since m(node) <= m(parent) and parents come first.

Worked example: four slots, each further row costs 0.14 plain steps. One slot copies: m = 0.95, 0.90, 0.86, 0.81; the
others have one node each, m = 0.1. Together: the four likeliest nodes make 7.52 tokens in 1.56 plain steps, 1.21 times
the rate of plain decoding, and are taken. Each for itself, with nothing won so far: after the first node a step takes
1.14, and three slots expect 1 token; their own nodes bring 0.1 and cost 0.14, so nothing is taken. Had all four copied,
one node each makes 1.95 tokens in 1.56 for everybody.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Constraints", "Node", "Selection", "StepsOf", "choose"]

SLACK = 1e-9
"""Rounding errors are nobody's loss."""


class Node(NamedTuple):
    """A node that could be verified: the chance m that it is on the accepted path, its slot, its number there."""

    chance: float
    slot: int
    number: int


class Constraints(NamedTuple):
    """Who pays.

    allowances   of every owner: plain steps that it may be expected to lose; one owner per slot, or one for all
    burst        plain steps that each of them could lose
    """

    allowances: Sequence[float]
    burst: float


class Selection(NamedTuple):
    """Nodes to verify.

    kept      of each slot, rising
    gain      its rate over that of plain decoding; 0 if no set is fair
    nothing   that of verifying nothing: 1, or less if drafting has been paid for
    """

    kept: list[list[int]]
    gain: float
    nothing: float


StepsOf = Callable[[int, int, float], float]
"""Plain steps that a step takes: of its nodes, the nodes of the slot that has most, and all tokens that it may emit."""


def choose(ranked: Sequence[Node], num_slots: int, constraints: Constraints, steps_of: StepsOf) -> Selection:
    """The best fair set that is not empty.

    Args:
        ranked: the likeliest first, parents before their children.
    """
    num_owners = len(constraints.allowances)
    share = num_owners / num_slots
    nothing = steps_of(0, 0, num_slots)
    expected = [nothing + allowance + SLACK for allowance in constraints.allowances]
    order = _Order(ranked, num_owners)
    taken: list[Node] = []
    counts, most, num_tokens = [0] * num_slots, 0, float(num_slots)
    best_rate, best_size, lacking = 0.0, 0, -1
    while (node := order.next(lacking)) is not None:
        taken.append(node)
        counts[node.slot] += 1
        most = max(most, counts[node.slot])
        num_tokens += node.chance
        expected[node.slot % num_owners] += node.chance * share
        steps = steps_of(len(taken), most, num_tokens)
        if steps - 1 > constraints.burst:
            break
        least = min(expected)
        lacking = -1 if least >= steps else expected.index(least)
        if lacking < 0 and num_tokens > best_rate * steps:
            best_rate, best_size = num_tokens / steps, len(taken)
    kept: list[list[int]] = [[] for _ in range(num_slots)]
    for node in taken[:best_size]:
        kept[node.slot].append(node.number)
    return Selection([sorted(nodes) for nodes in kept], best_rate / num_slots, 1 / nothing)


class _Order:
    """Hands out nodes, each once: the likeliest of one owner's or of all."""

    def __init__(self, ranked: Sequence[Node], num_owners: int) -> None:
        self._all = list(reversed(ranked))
        self._of: list[list[Node]] = [self._all] if num_owners == 1 else [[] for _ in range(num_owners)]
        if num_owners > 1:
            for node in self._all:
                self._of[node.slot].append(node)
        self._gone: set[Node] = set()

    def next(self, owner: int) -> Node | None:
        """Of this owner, or of all if it is -1; None when there is none left."""
        nodes = self._all if owner < 0 else self._of[owner]
        while nodes:
            node = nodes.pop()
            if node not in self._gone:
                self._gone.add(node)
                return node
        return None
