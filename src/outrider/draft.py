"""A draft: a proposer's guesses, as a tree of nodes under the root.

The *root* is the last committed token of a slot; the target has not read it yet. Every other guess is a *node*: a token
and the index of its parent node, -1 for a child of the root. Parents come before children (`parents[i] < i`), so a
chain is the tree with `parents = [-1, 0, 1, ...]`. The target reads the root as *row* 0 and node i as row i + 1.

    root "The"                     tokens   [cat, dog, sat, ran]
    ├── cat ── sat                 parents  [ -1,  -1,   0,   1]
    └── dog ── ran                 depths   [  1,   1,   2,   2]

A row may attend to itself and its ancestors only: with A the child-to-parent matrix, that relation is the transitive
closure (I + A)^N, computed by repeated squaring (SpecInfer, arXiv 2305.09781, calls it the topology-aware mask). A node
of depth d sits at position `length + d`, so siblings share a position.

Shapes: B slots, N nodes (padded to the longest draft of the batch), M = N + 1 rows, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Draft", "Tree", "merge", "tree_of_paths"]


class Tree(NamedTuple):
    """The draft of one slot on the host: `tokens[i]` hangs under node `parents[i]`, -1 for the root."""

    tokens: list[int]
    parents: list[int]

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> "Tree":
        return cls(list(tokens), list(range(-1, len(tokens) - 1)))

    def children(self) -> list[list[int]]:
        """Return the child rows of every row (row 0 is the root), in node order."""
        below: list[list[int]] = [[] for _ in range(len(self.tokens) + 1)]
        for node, parent in enumerate(self.parents):
            below[parent + 1].append(node + 1)
        return below

    def keep(self, nodes: Sequence[int]) -> "Tree":
        """Return the tree of some of its nodes: indices, rising, none without its parent."""
        places = {-1: -1} | {node: place for place, node in enumerate(nodes)}
        return Tree([self.tokens[node] for node in nodes], [places[self.parents[node]] for node in nodes])

    def depths(self) -> list[int]:
        """Return the depth of every node; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths


def tree_of_paths(paths: Sequence[Sequence[int]], max_nodes: int) -> Tree:
    """Return the prefix tree of several continuations; earlier paths get their nodes first if `max_nodes` is short.

    >>> tree_of_paths([[5, 6], [5, 7]], max_nodes=8)
    Tree(tokens=[5, 6, 7], parents=[-1, 0, 0])
    """
    tokens: list[int] = []
    parents: list[int] = []
    index: dict[tuple[int, int], int] = {}
    for path in paths:
        parent = -1
        for token in path:
            node = index.get((parent, token))
            if node is None:
                if len(tokens) == max_nodes:
                    break
                node = index[parent, token] = len(tokens)
                tokens.append(token)
                parents.append(parent)
            parent = node
    return Tree(tokens, parents)


def merge(trees: Sequence[Tree], max_nodes: int) -> Tree:
    """Merge trees: nodes with the same tokens from the root become one; earlier trees get their nodes first."""
    tokens: list[int] = []
    parents: list[int] = []
    index: dict[tuple[int, int], int] = {}
    for tree in trees:
        merged: list[int] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            above = -1 if parent < 0 else merged[parent]
            node = index.get((above, token), -2)  # -2: dropped, and with it every node below
            if node == -2 and above != -2 and len(tokens) < max_nodes:
                node = index[above, token] = len(tokens)
                tokens.append(token)
                parents.append(above)
            merged.append(node)
    return Tree(tokens, parents)


@dataclass(frozen=True, eq=False)
class Draft:
    """The drafts of a batch, made on the host as trees or on the device as tensors; the other view is made on demand.

    num_nodes    real nodes of each slot, on the host
    num_rows     M: the root and the nodes of the longest draft, or more where a device needs one width
    is_chain     True only if every slot's nodes form a single path
    device       device of the tensors
    probs_BMV    distributions of a sampled draft: the children of row m were drawn from row m's, without replacement
                 and in node order, after temperature and filters; None for a deterministic function of the context
    """

    num_nodes: tuple[int, ...]
    num_rows: int
    is_chain: bool
    device: torch.device
    probs_BMV: Tensor | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device | str = "cpu") -> "Draft":
        """Return a draft without nodes: a step with it is plain autoregressive decoding."""
        return cls.of_trees([Tree([], [])] * batch, device)

    @classmethod
    def of_trees(
        cls, trees: Sequence[Tree], device: torch.device | str = "cpu", probs_BMV: Tensor | None = None
    ) -> "Draft":
        num_nodes = tuple(len(tree.tokens) for tree in trees)
        is_chain = all(parent == node - 1 for tree in trees for node, parent in enumerate(tree.parents))
        draft = cls(num_nodes, 1 + max(num_nodes, default=0), is_chain, torch.device(device), probs_BMV)
        draft.__dict__["trees"] = list(trees)  # fills the cached property; the tensors are made on demand
        return draft

    @classmethod
    def of_tensors(
        cls,
        tokens_BN: Tensor,
        parents_BN: Tensor,
        num_nodes: Sequence[int],
        *,
        is_chain: bool,
        probs_BMV: Tensor | None = None,
    ) -> "Draft":
        """Return a draft made on the device, padded as the properties are; `is_chain` may be False for chains."""
        draft = cls(tuple(num_nodes), 1 + tokens_BN.shape[1], is_chain, tokens_BN.device, probs_BMV)
        draft.__dict__.update(tokens_BN=tokens_BN, parents_BN=parents_BN)
        return draft

    @cached_property
    def tokens_BN(self) -> Tensor:
        """int64, node tokens, padded to a rectangle with 0."""
        return self._padded([tree.tokens for tree in self.trees], 0)

    @cached_property
    def parents_BN(self) -> Tensor:
        """int64, parent node or -1, padded to a rectangle with -1."""
        return self._padded([tree.parents for tree in self.trees], -1)

    def _padded(self, rows: Sequence[list[int]], filler: int) -> Tensor:
        width = self.num_rows - 1
        full = [row + [filler] * (width - len(row)) for row in rows]
        return torch.tensor(full, dtype=torch.int64, device=self.device).reshape(len(rows), width)

    @classmethod
    def of_chains(
        cls, chains: Sequence[Sequence[int]], device: torch.device | str = "cpu", probs_BMV: Tensor | None = None
    ) -> "Draft":
        return cls.of_trees([Tree.chain(chain) for chain in chains], device, probs_BMV)

    @classmethod
    def on_device(cls, tokens_BN: Tensor, num_nodes: Sequence[int]) -> "Draft":
        """Return chains whose tokens stay on the device until they are verified; `num_nodes` of each slot are real."""
        slots, width = tokens_BN.shape
        parents_BN = torch.arange(-1, width - 1, device=tokens_BN.device).expand(slots, width)
        draft = cls.of_tensors(tokens_BN, parents_BN, num_nodes, is_chain=True)
        if min(num_nodes, default=width) == width:
            return draft
        # padding must look as in the properties: token 0, parent -1
        real_BN = draft.real_rows_BM()[:, 1:]
        return cls.of_tensors(tokens_BN * real_BN, parents_BN.where(real_BN, -1), num_nodes, is_chain=True)

    def tell_tokens(self, tokens: Sequence[Sequence[int]]) -> None:
        """Store a chain's tokens [B, N], which came to the host with the accepted path; saves `trees` a copy."""
        assert self.is_chain
        self.__dict__["trees"] = [Tree.chain(row[:count]) for row, count in zip(tokens, self.num_nodes, strict=True)]

    def keep(self, kept: Sequence[Sequence[int]]) -> "Draft":
        """Return the draft of some nodes: `kept[b]` are node indices of slot b, rising, none without its parent.

        >>> Draft.of_trees([Tree([5, 6, 7], [-1, -1, 1])]).keep([[1, 2]]).trees
        [Tree(tokens=[6, 7], parents=[-1, 0])]
        """
        if all(len(nodes) == count for nodes, count in zip(kept, self.num_nodes, strict=True)):
            return self
        trees = [tree.keep(nodes) for tree, nodes in zip(self.trees, kept, strict=True)]
        num_rows = 1 + max(map(len, kept), default=0)
        return Draft.of_trees(trees, self.device, None if self.probs_BMV is None else self._rows_kept(kept, num_rows))

    def with_chains(self, chains: Mapping[int, Sequence[int]]) -> "Draft":
        """Return the draft in which some slots, by their place, hold these chains and nothing else.

        >>> Draft.of_chains([[5, 6], []]).with_chains({1: [7]}).trees
        [Tree(tokens=[5, 6], parents=[-1, 0]), Tree(tokens=[7], parents=[-1])]
        """
        if not chains:
            return self
        trees = [Tree.chain(chains[place]) if place in chains else tree for place, tree in enumerate(self.trees)]
        if self.probs_BMV is None:
            return Draft.of_trees(trees, self.device)
        num_rows = 1 + max(len(tree.tokens) for tree in trees)
        probs_BMV = self.probs_BMV.new_zeros(self.num_slots, num_rows, self.probs_BMV.shape[2])
        for place, (tree, count) in enumerate(zip(trees, self.num_nodes, strict=True)):
            if place in chains:  # a deterministic draft is one-hot
                probs_BMV[place, range(len(tree.tokens)), tree.tokens] = 1.0
            else:
                probs_BMV[place, : count + 1] = self.probs_BMV[place, : count + 1]
        return Draft.of_trees(trees, self.device, probs_BMV)

    def _rows_kept(self, kept: Sequence[Sequence[int]], num_rows: int) -> Tensor:
        """Return the probabilities of the kept rows, [B, M, V], padded with zeros."""
        assert self.probs_BMV is not None
        probs_BMV = self.probs_BMV.new_zeros(self.num_slots, num_rows, self.probs_BMV.shape[2])
        for slot, nodes in enumerate(kept):
            rows = [0, *(node + 1 for node in nodes)]
            probs_BMV[slot, : len(rows)] = self.probs_BMV[slot, rows]
        return probs_BMV

    @property
    def num_slots(self) -> int:
        return len(self.num_nodes)

    @property
    def on_host(self) -> bool:
        """True if the host knows the tokens, so that `trees` copies nothing."""
        return "trees" in self.__dict__

    @cached_property
    def trees(self) -> list[Tree]:
        """The drafts without padding, on the host; a draft made on the device is copied once."""
        both = torch.stack((self.tokens_BN, self.parents_BN)).tolist()
        return [
            Tree(tokens[:n], parents[:n]) for tokens, parents, n in zip(both[0], both[1], self.num_nodes, strict=True)
        ]

    @cached_property
    def real_rows(self) -> list[int]:
        """The rows that are not padding, as indices into B * M."""
        return [slot * self.num_rows + row for slot, count in enumerate(self.num_nodes) for row in range(count + 1)]

    def real_rows_BM(self) -> Tensor:
        """Return which rows are the root or a real node, bool [B, M]."""
        device = self.device
        num_nodes_B = torch.tensor(self.num_nodes, dtype=torch.int64, device=device)
        return torch.arange(self.num_rows, device=device) <= num_nodes_B[:, None]

    def visible_BMM(self) -> Tensor:
        """Return which rows each row attends to (itself and its ancestors), bool [B, M, M]; False for padding rows."""
        real_BM = self.real_rows_BM()
        rows = self.num_rows
        if self.is_chain:
            closure_BMM = torch.ones(rows, rows, dtype=torch.bool, device=real_BM.device).tril()[None]
        else:
            closure_BMM = self._closure_BMM()
        return closure_BMM & real_BM[:, :, None] & real_BM[:, None, :]

    def _closure_BMM(self) -> Tensor:
        slots, rows = self.num_slots, self.num_rows
        # (I + A)^(2^k) covers paths of up to 2^k edges, so k squarings suffice for 2^k >= rows - 1
        step_BMM = torch.eye(rows, dtype=torch.float32, device=self.device).repeat(slots, 1, 1)
        step_BMM[:, 1:].scatter_(2, (self.parents_BN + 1)[:, :, None], 1.0)
        for _ in range((rows - 1).bit_length()):
            step_BMM = torch.bmm(step_BMM, step_BMM).clamp_(max=1.0)
        return step_BMM > 0

    def depths_BM(self, visible_BMM: Tensor) -> Tensor:
        """Return the depth of every row, int64 [B, M]; 0 for the root and for padding rows."""
        return (visible_BMM.sum(2) - 1).clamp_(min=0)

    def validate(self, vocab_size: int) -> None:
        """Assert the invariants of every draft; the contract tests use it, not the hot path."""
        assert self.tokens_BN.shape == self.parents_BN.shape
        assert len(self.num_nodes) == self.num_slots
        for tree in self.trees:
            assert all(0 <= token < vocab_size for token in tree.tokens), "a drafted token is outside the vocabulary"
            assert all(-1 <= parent < node for node, parent in enumerate(tree.parents)), "a parent follows its child"
            pairs = list(zip(tree.parents, tree.tokens, strict=True))
            assert len(set(pairs)) == len(pairs), "two siblings hold the same token"
