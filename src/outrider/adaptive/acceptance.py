"""The probability that a drafted node is right, estimated while decoding.

Every draft is judged by the tokens that the request emits later. The estimate is conditional: given that a node's
parent was right, is the node? With one number c per place (depth, rank among siblings), a node is on the accepted path
with probability

    m(node) = m(parent) * c(place),   m(root) = 1

and a slot that verifies the nodes K emits 1 + sum of m over K tokens on average.

c is a mean of decaying counts. Each level is shrunk to the one before it by `SHRINK` observations:

    the place above -> all drafts at this place -> drafts in the same situation -> drafts of this request

A situation is the streak (consecutive emitted tokens that their drafts had right) and whether the request is greedy.

Worked example: at depth 1, of 40 drafts 10 were right, none in another situation, and this request's last two were
right. All drafts: (10 + 4 * 0.5) / 44 = 0.27; in this situation (10 + 4 * 0.27) / 44 = 0.25; this request: (2 + 4 *
0.25) / 6 = 0.50.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple, final

from outrider.draft import Tree

__all__ = ["Acceptance", "Shape", "shape_of"]

FIRST: Final = 0.5
"""c of the first child of the root before any observation."""
SHRINK: Final = 4.0
MEMORY: Final = 200.0
"""Observations after which a count over all requests has faded to 1/e."""
OWN_MEMORY: Final = 12.0
"""The same for the counts of one request."""
KEPT: Final = 8.0
"""Largest weight of a count after a reset, in observations."""
STREAKS: Final = (1, 3, 8)
"""Lengths at which a streak enters the next class."""
ENOUGH: Final = 32.0
"""Observations from which a place is not shrunk to another."""
NUM_RANKS: Final = 8
"""Siblings of a higher rank share the last one's place."""


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a tree.

    places     one number per node for its depth and its rank among its siblings, see `place_of`
    children   nodes below every row, row 0 being the root
    """

    parents: tuple[int, ...]
    places: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=4096)
def shape_of(parents: tuple[int, ...]) -> Shape:
    """Return the shape of a tree; shapes are cached.

    >>> shape_of((-1, 0, -1)).children
    ((0, 2), (1,), (), ())
    """
    depths: list[int] = []
    places: list[int] = []
    children: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    for node, parent in enumerate(parents):
        depths.append(1 if parent < 0 else depths[parent] + 1)
        places.append(place_of(depths[node], len(children[parent + 1])))
        children[parent + 1].append(node)
    return Shape(parents, tuple(places), tuple(map(tuple, children)))


def place_of(depth: int, rank: int) -> int:
    """Return the place of a node by its depth, from 1, and its rank among its siblings, from 0."""
    return depth * NUM_RANKS + min(rank, NUM_RANKS - 1)


@final
@dataclass(slots=True)
class _Tally:
    """Decaying counts."""

    num_right: float = 0.0
    num_seen: float = 0.0

    def add(self, right: bool, memory: float) -> None:
        keep = 1 - 1 / memory
        self.num_right = self.num_right * keep + right
        self.num_seen = self.num_seen * keep + 1

    def fade(self, num_seen: float) -> None:
        scale = min(1.0, num_seen / self.num_seen)
        self.num_right, self.num_seen = self.num_right * scale, self.num_seen * scale


_Tallies = dict[int, _Tally]


def _shrunk(tallies: _Tallies, place: int, before: float) -> float:
    tally = tallies.get(place)
    return before if tally is None else (tally.num_right + SHRINK * before) / (tally.num_seen + SHRINK)


class _Judged(NamedTuple):
    place: int
    situation: int
    right: bool


@final
@dataclass(slots=True)
class _Pending:
    """A draft that later tokens will judge. `row` is that of the last right node; 0 is the root, -1 none."""

    tokens: Sequence[int]
    shape: Shape
    situation: int
    row: int = 0

    def judge(self, token: int) -> list[_Judged]:
        """Judge the children of `row` by the token that follows it, and move on to the right child."""
        below = self.shape.children[self.row]
        right = next((child for child in below if self.tokens[child] == token), -2)
        self.row = right + 1
        return [_Judged(self.shape.places[child], self.situation, child == right) for child in below]

    @property
    def open(self) -> bool:
        return self.row >= 0 and bool(self.shape.children[self.row])


@final
@dataclass(slots=True)
class _Request:
    """The state of one request. `pending`: drafts that are still to be judged, the newest last."""

    greedy: bool
    tallies: _Tallies = field(default_factory=dict)
    pending: list[_Pending] = field(default_factory=list)
    num_streak: int = 0

    @property
    def situation(self) -> int:
        return 2 * bisect_right(STREAKS, self.num_streak) + self.greedy


@final
class Acceptance:
    """Estimates for running requests and, through the counts of all requests, for new ones."""

    def __init__(self) -> None:
        self._all: _Tallies = {}
        self._in: tuple[_Tallies, ...] = tuple({} for _ in range(2 * (len(STREAKS) + 1)))
        self._known: tuple[dict[int, float], ...] = tuple({} for _ in self._in)
        """Cache of c by situation and place, over all requests; cleared by every count."""
        self._requests: dict[int, _Request] = {}

    def admit(self, greedy: Mapping[int, bool]) -> None:
        """Set the running requests, greedy or not, and drop all others."""
        self._requests = {id: self._requests.get(id) or _Request(is_greedy) for id, is_greedy in greedy.items()}

    def drafted(self, request: int, tree: Tree) -> None:
        """Record the draft of a request, before it is pruned."""
        state = self._requests[request]
        state.pending.append(_Pending(tree.tokens, shape_of(tuple(tree.parents)), state.situation))

    def emitted(self, request: int, tokens: Sequence[int]) -> None:
        """Judge this draft, and earlier ones that were right so far, by the tokens that the request emitted."""
        state = self._requests[request]
        if not state.pending:
            return
        newest = state.pending[-1]
        for token in tokens:
            for pending in state.pending:
                if not pending.open:
                    continue
                judged = pending.judge(token)
                self._count(state, judged)
                if pending is newest:
                    state.num_streak = state.num_streak + 1 if pending.row > 0 else 0
        if not newest.tokens:
            state.num_streak = 0
        state.pending = [pending for pending in state.pending if pending.open]

    def chances(self, request: int, shape: Shape, least: float = 0.0) -> list[float]:
        """Return m of every node of a draft of this shape; 0 below a node less likely than `least`."""
        state = self._requests[request]
        situation, tallies = state.situation, state.tallies
        known = self._known[situation]
        found: list[float] = []
        for place, parent in zip(shape.places, shape.parents, strict=True):
            above = 1.0 if parent < 0 else found[parent]
            if above < least:
                found.append(0.0)
                continue
            chance = known.get(place)
            if chance is None:
                chance = known[place] = _shrunk(self._in[situation], place, self._mean(place))
            found.append(above * _shrunk(tallies, place, chance))
        return found

    def reset(self) -> None:
        """Drop all requests, and fade the counts to `KEPT` observations: the texts to come may differ."""
        self._requests = {}
        for tallies in (self._all, *self._in):
            for tally in tallies.values():
                tally.fade(KEPT)
        self._forget()

    def _mean(self, place: int) -> float:
        """Return c over all drafts; with few, shrunk to the place above, or to half of the sibling before."""
        tally = self._all.get(place)
        if tally is not None and tally.num_seen >= ENOUGH:
            return tally.num_right / tally.num_seen
        depth, rank = divmod(place, NUM_RANKS)
        if rank > 0:
            return _shrunk(self._all, place, self._mean(place - 1) / 2)
        before = FIRST if depth == 1 else self._mean(place_of(depth - 1, 0))
        return _shrunk(self._all, place, before)

    def _forget(self) -> None:
        for known in self._known:
            known.clear()

    def _count(self, state: _Request, judged: Iterable[_Judged]) -> None:
        self._forget()
        for place, situation, right in judged:
            self._all.setdefault(place, _Tally()).add(right, MEMORY)
            self._in[situation].setdefault(place, _Tally()).add(right, MEMORY)
            state.tallies.setdefault(place, _Tally()).add(right, OWN_MEMORY)
