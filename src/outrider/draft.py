"""A draft: what a proposer guesses, as a tree of nodes under the root.

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

from collections.abc import Sequence
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
        """Child rows of every row (row 0 is the root), in node order."""
        below: list[list[int]] = [[] for _ in range(len(self.tokens) + 1)]
        for node, parent in enumerate(self.parents):
            below[parent + 1].append(node + 1)
        return below

    def depths(self) -> list[int]:
        """Depth of every node; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths


def tree_of_paths(paths: Sequence[Sequence[int]], max_nodes: int) -> Tree:
    """The prefix tree of several continuations; earlier paths claim the nodes first when `max_nodes` is short.

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
    """The union of several trees: nodes with the same tokens from the root become one node; earlier trees go first."""
    tokens: list[int] = []
    parents: list[int] = []
    index: dict[tuple[int, int], int] = {}
    for tree in trees:
        merged: list[int] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            above = -1 if parent < 0 else merged[parent]
            node = index.get((above, token), -2)
            if node == -2 and above != -2 and len(tokens) < max_nodes:
                node = index[above, token] = len(tokens)
                tokens.append(token)
                parents.append(above)
            merged.append(node)
    return Tree(tokens, parents)


@dataclass(frozen=True, eq=False)
class Draft:
    """The drafts of a batch, padded to a rectangle.

    tokens_BN    int64, node tokens; padding nodes hold 0
    parents_BN   int64, parent node or -1; padding nodes hold -1
    num_nodes    real nodes of each slot, on the host
    is_chain     every slot's nodes form a single path
    probs_BMV    for sampled drafts: row m holds the distribution from which the children of row m were drawn, without
                 replacement and in node order, after the same temperature and filters; None when the draft was a
                 deterministic function of the context
    """

    tokens_BN: Tensor
    parents_BN: Tensor
    num_nodes: tuple[int, ...]
    is_chain: bool
    probs_BMV: Tensor | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device | str = "cpu") -> "Draft":
        """No guesses: a step with this draft is plain autoregressive decoding."""
        none_BN = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return cls(none_BN, none_BN, (0,) * batch, is_chain=True)

    @classmethod
    def of_trees(
        cls, trees: Sequence[Tree], device: torch.device | str = "cpu", probs_BMV: Tensor | None = None
    ) -> "Draft":
        """Pad the trees of all slots to one rectangle."""
        num_nodes = tuple(len(tree.tokens) for tree in trees)
        width = max(num_nodes, default=0)
        tokens = [tree.tokens + [0] * (width - n) for tree, n in zip(trees, num_nodes, strict=True)]
        parents = [tree.parents + [-1] * (width - n) for tree, n in zip(trees, num_nodes, strict=True)]
        is_chain = all(parent == node - 1 for tree in trees for node, parent in enumerate(tree.parents))
        shape = (len(trees), width)
        draft = cls(
            torch.tensor(tokens, dtype=torch.int64, device=device).reshape(shape),
            torch.tensor(parents, dtype=torch.int64, device=device).reshape(shape),
            num_nodes,
            is_chain,
            probs_BMV,
        )
        draft.__dict__["trees"] = list(trees)
        return draft

    @classmethod
    def of_chains(
        cls, chains: Sequence[Sequence[int]], device: torch.device | str = "cpu", probs_BMV: Tensor | None = None
    ) -> "Draft":
        return cls.of_trees([Tree.chain(chain) for chain in chains], device, probs_BMV)

    @property
    def num_slots(self) -> int:
        return self.tokens_BN.shape[0]

    @property
    def num_rows(self) -> int:
        """M: the root and the nodes of the longest draft."""
        return self.tokens_BN.shape[1] + 1

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
        """bool: the root and the real nodes, not the padding."""
        device = self.tokens_BN.device
        num_nodes_B = torch.tensor(self.num_nodes, dtype=torch.int64, device=device)
        return torch.arange(self.num_rows, device=device) <= num_nodes_B[:, None]

    def visible_BMM(self) -> Tensor:
        """bool: row i may attend to row j (its ancestors and itself). Padding rows see nothing and are seen by none."""
        real_BM = self.real_rows_BM()
        rows = self.num_rows
        if self.is_chain:
            closure_BMM = torch.ones(rows, rows, dtype=torch.bool, device=real_BM.device).tril()[None]
        else:
            closure_BMM = self._closure_BMM()
        return closure_BMM & real_BM[:, :, None] & real_BM[:, None, :]

    def _closure_BMM(self) -> Tensor:
        slots, rows = self.num_slots, self.num_rows
        step_BMM = torch.eye(rows, device=self.tokens_BN.device).repeat(slots, 1, 1)
        step_BMM[:, 1:].scatter_(2, (self.parents_BN + 1)[:, :, None], 1.0)
        for _ in range((rows - 1).bit_length()):
            step_BMM = torch.bmm(step_BMM, step_BMM).clamp_(max=1.0)
        return step_BMM > 0

    def depths_BM(self, visible_BMM: Tensor) -> Tensor:
        """int64: depth of every row, 0 for the root and for padding rows."""
        return (visible_BMM.sum(2) - 1).clamp_(min=0)

    def validate(self, vocab_size: int) -> None:
        """Assert what every draft must obey; used by the contract tests, not in the hot path."""
        assert self.tokens_BN.shape == self.parents_BN.shape
        assert len(self.num_nodes) == self.num_slots
        for tree in self.trees:
            assert all(0 <= token < vocab_size for token in tree.tokens), "a drafted token is outside the vocabulary"
            assert all(-1 <= parent < node for node, parent in enumerate(tree.parents)), "a parent follows its child"
            pairs = list(zip(tree.parents, tree.tokens, strict=True))
            assert len(set(pairs)) == len(pairs), "two siblings hold the same token"
