"""The nodes to verify: the set with the highest rate that is fair to every owner.

A set K of nodes takes s(K) plain steps. An owner (a slot, or all slots together) expects t(K) tokens of it: 1 for the
root plus m of each of its nodes, averaged over its slots. Of all sets with

    s(K) - 1 <= burst                            every owner can afford that all of it is wrong
    s(K) - s(nothing) <= t(K) - 1 + allowance    every owner expects to win, or to lose at most its allowance

the one with the most tokens per second is taken. The nodes of all slots are ranked once and taken in turn. Where the
set so far is unfair to an owner, the next node is the likeliest of the owner that lacks most, until it has none left or
the step is too long. No node is kept without its parent, since m(node) <= m(parent).

Worked example: one slot, 0.14 plain steps per row, m = 0.9, 0.81, 0.1. One node: 1.9 tokens in 1.14 plain steps, a rate
of 1.67; two: 2.71 in 1.28, 2.12; three: 2.81 in 1.42, 1.98. Two nodes are taken.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Constraints", "Node", "Selection", "StepsOf", "choose"]

SLACK = 1e-9
"""Tolerance for rounding errors, in plain steps."""


class Node(NamedTuple):
    """A node that could be verified: the chance m that it is on the accepted path, its slot, its index in the tree."""

    chance: float
    slot: int
    number: int


class Constraints(NamedTuple):
    """The limits that the owners' balances set.

    allowances   plain steps that each owner may be expected to lose; one owner per slot, or one for all
    burst        plain steps that each of them could lose
    """

    allowances: Sequence[float]
    burst: float


class Selection(NamedTuple):
    """The nodes to verify.

    kept      node indices of each slot, ascending
    gain      rate over that of plain decoding; 0 if no set is fair
    nothing   rate of verifying nothing: 1, or less if drafting is already spent
    """

    kept: list[list[int]]
    gain: float
    nothing: float


StepsOf = Callable[[int, int, float], float]
"""(nodes of all slots, nodes of the slot with most, tokens the step emits) -> duration of the step in plain steps."""


def choose(ranked: Sequence[Node], num_slots: int, constraints: Constraints, steps_of: StepsOf) -> Selection:
    """Return the best fair set that is not empty.

    Args:
        ranked: nodes by falling chance, parents before their children.
        steps_of: plain steps that a step takes; see `StepsOf`.
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
    """Yields each node once: the likeliest of one owner, or of all."""

    def __init__(self, ranked: Sequence[Node], num_owners: int) -> None:
        self._all = list(reversed(ranked))
        self._of: list[list[Node]] = [self._all] if num_owners == 1 else [[] for _ in range(num_owners)]
        if num_owners > 1:
            for node in self._all:
                self._of[node.slot].append(node)
        self._gone: set[Node] = set()

    def next(self, owner: int) -> Node | None:
        """Return the next node of this owner, or of all if it is -1; None when there is none left."""
        nodes = self._all if owner < 0 else self._of[owner]
        while nodes:
            node = nodes.pop()
            if node not in self._gone:
                self._gone.add(node)
                return node
        return None
