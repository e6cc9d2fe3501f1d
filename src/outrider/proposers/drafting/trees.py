"""Growing a draft tree from a drafter's probabilities, level by level (EAGLE-2, arXiv 2406.16858, section 4).

Each level expands the `width` most probable nodes of the level before, each into its `width` most probable tokens. A
node's score is the log-probability of its path. When the tree is deep enough, the `num_nodes` best of all candidates
are kept. A child never scores above its parent, so with ties going to the earlier node every kept node's parent is kept
too.

Worked example, width 2: the root's children a (0.6) and b (0.3); a's children c (0.5) and d (0.2), b's children e (0.9)
and f (0.1). Path probabilities: a 0.6, b 0.3, c 0.30, e 0.27, d 0.12, f 0.03. With num_nodes = 4 the tree is a, b, c,
e.
"""

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from outrider.draft import Tree

__all__ = ["Growth", "Ranked", "best_nodes", "ranked"]

FEW = 12
"""Largest width for which repeated argmax beats sorting on the CPU: 10 us against 50 us for 4 of 8,192."""


class Ranked(NamedTuple):
    """The largest numbers of each row, largest first, and their columns."""

    values_RW: Tensor
    columns_RW: Tensor


def ranked(x_RK: Tensor, width: int) -> Ranked:
    """Return the `width` largest numbers of each row, or all of fewer; on the CPU, ties go to the lowest column.

    >>> ranked(torch.tensor([[3.0, 9.0, 5.0]]), 2).columns_RW.tolist()
    [[1, 2]]
    """
    width = min(width, x_RK.shape[1])
    if x_RK.device.type != "cpu" or x_RK.dtype not in (torch.float32, torch.float64) or width > FEW:
        best = x_RK.topk(width, dim=-1)
        return Ranked(best.values, best.indices)
    left_RK, rows_R = x_RK.numpy().copy(), np.arange(len(x_RK))
    values_RW, columns_RW = np.empty((len(x_RK), width), left_RK.dtype), np.empty((len(x_RK), width), np.int64)
    for rank in range(width):
        columns_RW[:, rank] = left_RK.argmax(-1)
        values_RW[:, rank] = left_RK[rows_R, columns_RW[:, rank]]
        left_RK[rows_R, columns_RW[:, rank]] = -np.inf
    return Ranked(torch.from_numpy(values_RW), torch.from_numpy(columns_RW))


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
        """Return the best candidates as a tree; parents stay before their children."""
        # Of equals the earlier node: a parent is never after its child.
        ranked = sorted(range(len(self.scores)), key=lambda node: (-self.scores[node], node))
        kept = sorted(ranked[:num_nodes])
        index = {node: place for place, node in enumerate(kept)}
        parents = [index.get(self.candidates.parents[node], -1) for node in kept]
        return Tree([self.candidates.tokens[node] for node in kept], parents)


def best_nodes(log_probs: Sequence[Sequence[float]], num_nodes: int) -> list[tuple[int, ...]]:
    """Return the `num_nodes` most probable paths of ranks, best first, where every depth has one list for all parents.

    `log_probs[d]` falls. No path is more probable than its parent, or than its sibling of the rank before, so a heap
    that receives the first child and the next sibling of every path taken gives all paths in order.

    >>> best_nodes([[-0.5, -1.0], [-0.25, -2.0]], 3)
    [(0,), (0, 0), (1,)]
    """
    kept: list[tuple[int, ...]] = []
    heap: list[tuple[float, int, tuple[int, ...], float]] = []

    def add(path: tuple[int, ...], above: float) -> None:
        row = log_probs[len(path) - 1] if len(path) <= len(log_probs) else ()
        if path[-1] < len(row) and row[path[-1]] > -math.inf:
            # a tie goes to the shorter path, then to the better ranks
            heapq.heappush(heap, (-(above + row[path[-1]]), len(path), path, above))

    add((0,), 0.0)
    while heap and len(kept) < num_nodes:
        cost, _, path, above = heapq.heappop(heap)
        kept.append(path)
        add((*path[:-1], path[-1] + 1), above)
        add((*path, 0), -cost)
    return kept
