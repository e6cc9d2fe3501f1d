"""Growing a draft tree from a drafter's probabilities, level by level (EAGLE-2, arXiv 2406.16858, section 4).

Each level expands the `width` most probable nodes of the level before, each into its `width` most probable tokens. A
node's score is the log-probability of its path. When the tree is deep enough, the `num_nodes` best of all candidates
are kept. A child never scores above its parent, so with ties going to the earlier node every kept node's parent is kept
too.

Worked example, width 2: the root's children a (0.6) and b (0.3); a's children c (0.5) and d (0.2), b's children e (0.9)
and f (0.1). Path probabilities: a 0.6, b 0.3, c 0.30, e 0.27, d 0.12, f 0.03. With num_nodes = 4 the tree is a, b, c,
e.
"""

from collections.abc import Sequence
from typing import final

from outrider.draft import Tree

__all__ = ["Growth"]


@final
class Growth:
    """The candidates of one slot."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.candidates = Tree([], [])
        self.scores: list[float] = []
        self.frontier: list[int] = [-1]

    def add_level(self, tokens: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]]) -> None:
        """Expand the frontier: entry f holds the best tokens after frontier node f, and their log-probabilities."""
        first = len(self.scores)
        for node, row, gains in zip(self.frontier, tokens, log_probs, strict=True):
            above = self.scores[node] if node >= 0 else 0.0
            for token, gain in zip(row, gains, strict=True):
                self.candidates.tokens.append(token)
                self.candidates.parents.append(node)
                self.scores.append(above + gain)
        level = range(first, len(self.scores))
        self.frontier = sorted(sorted(level, key=lambda node: -self.scores[node])[: self.width])

    def select(self, num_nodes: int) -> Tree:
        """The best candidates as a tree; parents stay before their children."""
        ranked = sorted(range(len(self.scores)), key=lambda node: (-self.scores[node], node))
        kept = sorted(ranked[:num_nodes])
        index = {node: place for place, node in enumerate(kept)}
        parents = [index.get(self.candidates.parents[node], -1) for node in kept]
        return Tree([self.candidates.tokens[node] for node in kept], parents)
