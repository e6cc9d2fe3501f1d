"""How likely a drafted node is right, estimated while decoding, without verifying anything for it.

A draft that was cut, or not verified at all, is judged in hindsight: the request goes on to emit tokens, and they say
which of its nodes were right. So every draft teaches, kept or not, and looking costs nothing but drafting.

What is estimated is conditional: given that a node's parent was right, is the node? One number per place (depth, rank
among its siblings), so chains and trees are one case. A node is on the accepted path with probability

    m(node) = m(parent) * c(place),   m(root) = 1

and a slot whose nodes K are verified emits 1 + sum of m over K tokens on average.

Requests differ (an edit copies, a chat does not), and so do the parts of one text (inside a copied passage or not). So
c is a mean of decaying counts, each level shrunk to the one before it by `SHRINK` observations:

    the place above -> all drafts at this place -> those in a situation like this one -> this request's

where the situation is the streak, the number of emitted tokens in a row, up to now, that the drafts of their steps had
right, and whether the request is greedy: what is drawn at a temperature is less often the likeliest token.

Worked example: at depth 1, of 40 drafts 10 were right, none in another situation, and this request's last two were
right. All drafts: (10 + 4 * 0.5) / 44 = 0.27; in this situation (10 + 4 * 0.27) / 44 = 0.25; this request:
(2 + 4 * 0.25) / 6 = 0.50.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple, final

from outrider.draft import Tree

__all__ = ["Acceptance", "Shape", "shape_of"]

FIRST: Final = 0.5
"""Before anything is known: of the first child of the root."""
SHRINK: Final = 4.0
MEMORY: Final = 200.0
"""Observations after which what all requests taught has faded to 1/e."""
OWN_MEMORY: Final = 12.0
"""The same for what one request taught."""
KEPT: Final = 8.0
"""Observations that the estimates weigh at most after a reset."""
STREAKS: Final = (1, 3, 8)
"""Tokens at which a streak is of the next class."""
ENOUGH: Final = 32.0
"""Observations of a place that need no other place's."""
NUM_RANKS: Final = 8
"""Siblings of a higher rank share the last one's place."""


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a tree.

    places     of every node: one number for its depth and its rank among its siblings, see `place_of`
    children   nodes below every row, row 0 being the root
    """

    parents: tuple[int, ...]
    places: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=4096)
def shape_of(parents: tuple[int, ...]) -> Shape:
    """
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
    """Where a node stands: its depth, from 1, and its rank among its siblings, from 0."""
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
    """A draft that the tokens to come will judge. `row` is that of the last right node; 0 is the root, -1 none."""

    tokens: Sequence[int]
    shape: Shape
    situation: int
    row: int = 0

    def judge(self, token: int) -> list[_Judged]:
        """The children of `row`, now that the token behind it is known; moves on to the right one."""
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
    """What is known about one request. `pending`: drafts to be judged, the newest last."""

    greedy: bool
    tallies: _Tallies = field(default_factory=dict)
    pending: list[_Pending] = field(default_factory=list)
    num_streak: int = 0

    @property
    def situation(self) -> int:
        return 2 * bisect_right(STREAKS, self.num_streak) + self.greedy


@final
class Acceptance:
    """Estimates for the requests that run, and for those to come."""

    def __init__(self) -> None:
        self._all: _Tallies = {}
        self._in: tuple[_Tallies, ...] = tuple({} for _ in range(2 * (len(STREAKS) + 1)))
        self._known: tuple[dict[int, float], ...] = tuple({} for _ in self._in)
        """Chances by situation and place, of all requests; until something new is counted."""
        self._requests: dict[int, _Request] = {}

    def admit(self, greedy: Mapping[int, bool]) -> None:
        """These requests run now, greedy or not; the others have ended."""
        self._requests = {id: self._requests.get(id) or _Request(is_greedy) for id, is_greedy in greedy.items()}

    def drafted(self, request: int, tree: Tree) -> None:
        """What was drafted for a request, before any cut."""
        state = self._requests[request]
        state.pending.append(_Pending(tree.tokens, shape_of(tuple(tree.parents)), state.situation))

    def emitted(self, request: int, tokens: Sequence[int]) -> None:
        """What the request then emitted: it judges this step's draft, and earlier ones that were right so far."""
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
        """m of every node of a draft of this shape, if it were verified now; 0 below one less likely than `least`."""
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
        """Other texts come; what is known counts for little against what they will show."""
        self._requests = {}
        for tallies in (self._all, *self._in):
            for tally in tallies.values():
                tally.fade(KEPT)
        self._forget()

    def _mean(self, place: int) -> float:
        """Of all drafts; where there were few, shrunk to the place above, or to half of the sibling before."""
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
