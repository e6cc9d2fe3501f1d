"""Trees of a recurrent head: each level is one read of only the rows that are new.

A tree grows level by level (`trees.py` for the dynamic one of EAGLE-2, arXiv 2406.16858; `RankedGrowth` for a fixed
shape). The nodes that will be expanded, the frontier, are read in one call: each with its parent's output state as its
state, at the rotary position of its depth, written behind the entries of earlier levels. A mask row lets it see the
committed pairs, its ancestors' entries and its own.

    committed length 9, width 2     level 1 reads a b at positions 9 9, written to 9 10
    frontier of level 2: c, d       both children of b: positions 10 10, written to 11 12, c sees 0..8, 10, 11

Nothing here is kept: the entries lie behind the committed length.

Shapes: B slots, W frontier nodes of each, T tail positions written so far, E hidden size, K output columns.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.draft import Tree
from outrider.errors import ConfigError
from outrider.models.draft_network import DraftNetwork, Reading
from outrider.ops.base import GraphCache
from outrider.placement import place_level
from outrider.proposer import DraftLimit
from outrider.proposers.drafting.trees import Growth, ranked

__all__ = ["Paths", "RankedGrowth", "draft_trees", "num_tree_rows", "parse_paths"]

Paths = tuple[tuple[int, ...], ...]
"""The shape of a static tree: each node as its ranks from the root, a parent before its children."""


def parse_paths(text: str) -> Paths:
    """Read a static tree from text: nodes separated by spaces or commas, ranks by dots.

    >>> parse_paths("0 1 0.0")
    ((0,), (1,), (0, 0))

    Raises:
        ConfigError: if a part is not a rank path, comes twice, or comes before its parent.
    """
    paths: list[tuple[int, ...]] = []
    for part in text.replace(",", " ").split():
        if not all(rank.isdigit() for rank in part.split(".")):
            raise ConfigError(f"'{part}' is not a path of ranks such as 0.1.0")
        path = tuple(int(rank) for rank in part.split("."))
        if path in paths:
            raise ConfigError(f"path {part} comes twice; name each node of the tree once")
        if path[:-1] and path[:-1] not in paths:
            raise ConfigError(f"path {part} comes before its parent; name parents first")
        paths.append(path)
    if not paths:
        raise ConfigError("a static tree needs at least one path such as 0")
    return tuple(paths)


@final
class RankedGrowth:
    """A tree of fixed shape: path (r1, r2, ...) is the child of rank r1 of the root, its child of rank r2, ..."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.width = 1 + max(rank for path in paths for rank in path)
        self.candidates = Tree([], [])
        self.frontier: list[int] = [-1]
        self._depth = 0
        self._node_of: dict[tuple[int, ...], int] = {(): -1}

    def add_level(self, tokens: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]]) -> None:
        """Expand the frontier: entry f holds the best tokens after frontier node f, best first."""
        best = dict(zip(self.frontier, tokens, strict=True))
        self._depth += 1
        for path in self.paths:
            parent = self._node_of.get(path[:-1])
            if len(path) == self._depth and parent in best and path[-1] < len(best[parent]):
                self._node_of[path] = len(self.candidates.tokens)
                self.candidates.tokens.append(best[parent][path[-1]])
                self.candidates.parents.append(parent)
        inner = {path[:-1] for path in self.paths if len(path) == self._depth + 1}
        self.frontier = [node for path, node in self._node_of.items() if path in inner]

    def select(self, num_nodes: int) -> Tree:
        """Return the first `num_nodes` nodes, in the order of the paths."""
        grown = [self._node_of[path] for path in self.paths if path in self._node_of][:num_nodes]
        index = {node: place for place, node in enumerate(grown)} | {-1: -1}
        parents = [index[self.candidates.parents[node]] for node in grown]
        return Tree([self.candidates.tokens[node] for node in grown], parents)


@final
class _Sapling:
    """One slot's tree while it grows.

    seen    tail entries of every node that was read: its ancestors' and its own
    rows    row in `out_WE` of every node of the last read
    """

    def __init__(self, slot: int, limit: DraftLimit, growth: Growth | RankedGrowth, state_1E: Tensor) -> None:
        self.slot = slot
        self.limit = limit
        self.growth = growth
        self.out_WE = state_1E
        self.rows: dict[int, int] = {-1: 0}
        self.seen: dict[int, list[int]] = {-1: []}

    def inputs(self) -> Tensor:
        """Return the states that the frontier is read with: its parents' outputs [W, E]."""
        parents = self.growth.candidates.parents
        return self.out_WE[[self.rows[parents[node]] for node in self.growth.frontier]]

    def enter(self, num_tail: int) -> list[list[int]]:
        """Give the frontier its tail entries, from `num_tail` on, and return what each of its nodes sees."""
        for row, node in enumerate(self.growth.frontier):
            self.seen[node] = [*self.seen[self.growth.candidates.parents[node]], num_tail + row]
        self.rows = {node: row for row, node in enumerate(self.growth.frontier)}
        return [self.seen[node] for node in self.growth.frontier]


def num_tree_rows(width: int, depth: int, paths: Paths | None) -> int:
    """Count the tail positions that a tree's reads may take: nodes of the last level are never read."""
    return width * max(0, depth - 1) if paths is None else len(paths)


def draft_trees(
    network: DraftNetwork,
    cache: KVCache,
    start: Reading,
    limits: Mapping[int, DraftLimit],
    width: int,
    paths: Paths | None,
    graph_cache: GraphCache | None,
) -> dict[int, Tree]:
    """Grow one tree in each slot of `limits`.

    Args:
        start: the head's state and logits behind the last committed pair, a row for each slot.
        graph_cache: recorded reads of this cache; see `DraftNetwork.read`.
    """
    saplings = [
        _Sapling(slot, limit, Growth(width) if paths is None else RankedGrowth(paths), state_1E)
        for (slot, limit), state_1E in zip(limits.items(), torch.split(start.states_RE, 1), strict=True)
    ]
    assert start.logits_NK is not None, "every tree has a root to grow from"
    _expand(network, saplings, start.logits_NK)
    active, level, num_tail = saplings, 1, 0
    while active := [one for one in active if level < min(one.limit) and one.growth.frontier]:
        _expand(network, active, _read_frontiers(network, cache, active, level, num_tail, graph_cache))
        num_tail += len(active[0].rows)
        level += 1
    return {one.slot: one.growth.select(one.limit.num_nodes) for one in saplings}


def _read_frontiers(
    network: DraftNetwork,
    cache: KVCache,
    active: Sequence[_Sapling],
    level: int,
    num_tail: int,
    graph_cache: GraphCache | None,
) -> Tensor:
    """Read the frontier of every slot in one call, behind `num_tail` tail positions; return logits of all its nodes."""
    num_new = len(active[0].growth.frontier)
    inputs_RE = torch.cat([one.inputs() for one in active])
    # Built on the host: which entries a node sees is known there.
    mask_BWT = np.zeros((len(active), num_new, num_tail + num_new), dtype=np.bool_)
    for place, one in enumerate(active):
        for row, seen in enumerate(one.enter(num_tail)):
            mask_BWT[place, row, seen] = True
    tokens = [one.growth.candidates.tokens[node] for one in active for node in one.growth.frontier]
    placement = place_level(cache, [one.slot for one in active], num_tail, level, mask_BWT)
    tokens_R = torch.tensor(tokens, device=cache.device)
    out_RE, logits_RK = network.read(
        inputs_RE, tokens_R, placement, cache, num_predicted=len(tokens), graph_cache=graph_cache
    )
    assert logits_RK is not None, "logits were asked for"
    for one, out_WE in zip(active, torch.split(out_RE, num_new), strict=True):
        one.out_WE = out_WE
    return logits_RK


def _expand(network: DraftNetwork, active: Sequence[_Sapling], logits_RK: Tensor) -> None:
    """Add the most probable children of every frontier node."""
    best = ranked(logits_RK.log_softmax(-1), active[0].growth.width)
    ids_RW = best.columns_RW if network.ids_K is None else network.ids_K[best.columns_RW]
    # rounding must not lift a child above its parent
    tokens, gains, start = ids_RW.tolist(), best.values_RW.clamp(max=0.0).tolist(), 0
    for one in active:
        end = start + len(one.growth.frontier)
        one.growth.add_level(tokens[start:end], gains[start:end])
        start = end
