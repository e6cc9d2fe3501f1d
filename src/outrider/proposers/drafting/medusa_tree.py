"""Static Medusa trees: rank paths, grown from measured accuracies (arXiv 2401.10774, 2.3).

The heads do not see each other's guesses, so the best tokens of head d are the same under every parent, and a node is a
*rank path*: (0, 2) is the third best token of head 2 under the best token of head 1. With a_d(r) the share of
held-out places at which the token of rank r of head d was right, a node's worth is that of being on the right path,

    worth(r1, ..., rd) = a_1(r1) * ... * a_d(rd)

and the sum of worths is the number of tokens the tree expects to be accepted. No node is worth more than its parent, so
the best tree of n nodes is the n nodes of largest worth, and the best tree of fewer nodes is a prefix of it.

Worked example: a_1 = (0.6, 0.2), a_2 = (0.5, 0.1) gives (0) 0.6, (0, 0) 0.3, (1) 0.2, (1, 0) 0.1, (0, 1) 0.06.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple, final

from outrider.draft import Tree
from outrider.proposer import DraftLimit
from outrider.proposers.drafting.recurrent_tree import Paths

__all__ = ["Accuracies", "Cut", "RankTree", "default_accuracies", "grown_paths"]

Accuracies = Sequence[Sequence[float]]
"""`accuracies[d][r]`: how often the token of rank r (0 the best) of head d + 1 is right."""

FIRST, DEEPER, SECOND = 0.6, 0.75, 0.2


def default_accuracies(num_heads: int, num_ranks: int = 10) -> list[list[float]]:
    """Return accuracies to assume for heads that were not measured.

    The first guess of head 1 is right in 60 % of the cases, each further head in 3/4 of the cases of the one before;
    rank r comes out 0.2 / r times as often as rank 0.
    """
    ranks = [1.0] + [SECOND / rank for rank in range(1, num_ranks)]
    return [[FIRST * DEEPER**head * share for share in ranks] for head in range(num_heads)]


def grown_paths(accuracies: Accuracies, num_nodes: int) -> Paths:
    """Rank paths by descending worth (of equals, the shorter first), enough for every limit of at most `num_nodes`.

    For every depth limit, the first `num_nodes` paths within it are the best tree of that depth. Paths that are worth
    nothing are left out.
    """
    worths = {
        path: worth
        for depth in range(1, len(accuracies) + 1)
        for path, worth in _best(accuracies[:depth], num_nodes).items()
    }
    return tuple(sorted(worths, key=lambda path: (-worths[path], len(path), path)))


def _best(accuracies: Accuracies, num_nodes: int) -> dict[tuple[int, ...], float]:
    """Select the `num_nodes` paths of largest worth, and return their worths."""
    kept: dict[tuple[int, ...], float] = {}
    rest: list[tuple[float, int, tuple[int, ...]]] = [(-1.0, 0, ())]
    while rest and len(kept) <= num_nodes:
        negative, depth, path = heapq.heappop(rest)
        kept[path] = -negative
        # A path is worth the product of its accuracies, so a child is never worth more than its parent.
        for rank, share in enumerate(accuracies[depth] if depth < len(accuracies) else ()):
            if share > 0:
                heapq.heappush(rest, (negative * share, depth + 1, (*path, rank)))
    del kept[()]
    return kept


class Cut(NamedTuple):
    """A tree within a slot's limit.

    paths     its nodes
    parents   the parent node of each, -1 for the root
    widths    ranks of each head that it uses, head by head
    """

    paths: Paths
    parents: list[int]
    widths: list[int]

    def filled(self, ranked: Sequence[Sequence[int]]) -> Tree:
        """Fill in tokens: `ranked[d][r]` is the token of rank r of head d + 1."""
        return Tree([ranked[len(path) - 1][path[-1]] for path in self.paths], list(self.parents))


@final
class RankTree:
    """Rank paths, parents before children, pruned to each slot's limit. `num_ranks` is the columns of a head."""

    def __init__(self, paths: Paths, num_ranks: int) -> None:
        self.paths = tuple(path for path in paths if max(path) < num_ranks)
        self.max_depth = max((len(path) for path in self.paths), default=0)
        self._cuts: dict[DraftLimit, Cut] = {}

    def cut(self, limit: DraftLimit) -> Cut:
        """Keep the first `num_nodes` paths that are no deeper than `max_depth`."""
        limit = DraftLimit(min(limit.num_nodes, len(self.paths)), min(limit.max_depth, self.max_depth))
        # Limits repeat from step to step, so cuts are kept.
        if limit not in self._cuts:
            self._cuts[limit] = _cut(self.paths, limit)
        return self._cuts[limit]


def _cut(paths: Paths, limit: DraftLimit) -> Cut:
    kept = tuple([path for path in paths if len(path) <= limit.max_depth][: limit.num_nodes])
    index = {path: node for node, path in enumerate(kept)} | {(): -1}
    depth = max((len(path) for path in kept), default=0)
    widths = [1 + max(path[-1] for path in kept if len(path) == level) for level in range(1, depth + 1)]
    return Cut(kept, [index[path[:-1]] for path in kept], widths)
