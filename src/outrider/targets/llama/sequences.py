"""The texts of a batch as llama.cpp's sequences, and how a step that was read is kept or undone.

Slot s is sequence s. Two kinds of memory differ in what can be undone:

**Attention.** Positions are kept apart and can be removed. A tree is read with one sequence for each path from the root
to a leaf; a node belongs to the sequences of all leaves below it, so it sees its ancestors and nothing else:

    root, a, b, a's child       sequences (0, 9), (0,), (9,), (0,)      0 is the slot's own, 9 a free one
    accepted: b                 9 is the winner: its positions become the slot's, and the others are removed

Only tables change; keys and values stay where they are.

**Recurrent or hybrid.** A state is written over by each token. Before a step a second sequence takes a copy of the
slot's state. A draft that was not accepted whole is undone by going back to the copy and reading the accepted tokens
again: a second, shorter pass, which is part of the commit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, final

from outrider.draft import Tree
from outrider.errors import CapacityError
from outrider.targets.llama.binding import Context, Row

__all__ = ["AttentionMemory", "Memory", "Pending", "RecurrentMemory"]

ROOT: Final = -1


class Pending(NamedTuple):
    """A step that was read and not committed: the root, the draft, and the sequence of each leaf by its row."""

    root: int
    tree: Tree
    leaves: Mapping[int, int]

    def path_tokens(self, path: Sequence[int]) -> list[int]:
        """Return the root and the tokens of an accepted path."""
        return [self.root, *(self.tree.tokens[row - 1] for row in path)]


class Memory(ABC):
    """The sequences of a context, whose steps are kept or undone."""

    @abstractmethod
    def __init__(self, context: Context, num_slots: int) -> None: ...

    @staticmethod
    @abstractmethod
    def num_sequences(num_slots: int, tail: int) -> int:
        """Return the sequences that so many slots need, for steps of at most `tail` rows."""

    @abstractmethod
    def stage(self, slot: int, length: int, root: int, tree: Tree) -> tuple[Pending, list[Row]]:
        """Return the rows of a step behind `length` positions, and what is needed to keep or undo it."""

    @abstractmethod
    def keep(self, slot: int, length: int, pending: Pending, path: Sequence[int]) -> None:
        """Keep the root and the path, rows of the draft, and undo the rest."""

    @abstractmethod
    def undo(self, slot: int, length: int, pending: Pending) -> None:
        """Undo the whole step."""

    @abstractmethod
    def free(self, slot: int) -> None:
        """Forget what is kept beside a slot whose step was kept or undone."""


@final
class AttentionMemory(Memory):
    """Positions that can be removed one by one."""

    @staticmethod
    def num_sequences(num_slots: int, tail: int) -> int:
        return num_slots * max(1, tail - 1)

    def __init__(self, context: Context, num_slots: int) -> None:
        self._context = context
        self._spare = list(range(num_slots, context.num_sequences))

    def stage(self, slot: int, length: int, root: int, tree: Tree) -> tuple[Pending, list[Row]]:
        depths = [0, *tree.depths()]
        parents = [ROOT, *(parent + 1 for parent in tree.parents)]
        leaves = sorted(set(range(len(parents))) - set(parents))
        if len(leaves) - 1 > len(self._spare):
            raise CapacityError(
                f"the trees of this batch have more branches than llama.cpp has sequences"
                f" ({self._context.num_sequences}); use fewer slots (max_batch) or fewer nodes"
            )
        sequences = {leaf: slot if leaf == leaves[0] else self._spare.pop() for leaf in leaves}
        below: list[list[int]] = [[] for _ in parents]
        for leaf, sequence in sequences.items():
            if sequence != slot and length:
                self._context.share(slot, sequence)
            row = leaf
            while row != ROOT:
                below[row].append(sequence)
                row = parents[row]
        tokens = [root, *tree.tokens]
        rows = [Row(token, length + depths[row], tuple(below[row])) for row, token in enumerate(tokens)]
        return Pending(root, tree, sequences), rows

    def keep(self, slot: int, length: int, pending: Pending, path: Sequence[int]) -> None:
        wanted, end = path[-1] if path else 0, length + 1 + len(path)
        winner = next(sequence for leaf, sequence in pending.leaves.items() if _is_above(pending.tree, wanted, leaf))
        if winner != slot:
            self._context.forget(slot, length)
            self._context.share(winner, slot, length, end)
        self._context.forget(slot, end)
        self._free(slot, pending)

    def undo(self, slot: int, length: int, pending: Pending) -> None:
        self._context.forget(slot, length)
        self._free(slot, pending)

    def free(self, slot: int) -> None:
        """Do nothing: sequences are given back after every step."""

    def _free(self, slot: int, pending: Pending) -> None:
        for sequence in pending.leaves.values():
            if sequence != slot:
                self._context.forget(sequence)
                self._spare.append(sequence)


def _is_above(tree: Tree, row: int, leaf: int) -> bool:
    """Return whether a row is a leaf or above it."""
    while leaf > row:
        leaf = tree.parents[leaf - 1] + 1
    return leaf == row


@final
class RecurrentMemory(Memory):
    """States of which a copy is kept: sequence `num_slots + s` for slot s."""

    @staticmethod
    def num_sequences(num_slots: int, tail: int) -> int:
        return 2 * num_slots

    def __init__(self, context: Context, num_slots: int) -> None:
        self._context = context
        self._num_slots = num_slots

    def stage(self, slot: int, length: int, root: int, tree: Tree) -> tuple[Pending, list[Row]]:
        assert tree.parents == Tree.chain(tree.tokens).parents, "only chains are drafted for a recurrent state"
        kept = self._num_slots + slot
        self._context.forget(kept)
        if length:
            self._context.share(slot, kept)
        rows = [Row(token, length + row, (slot,)) for row, token in enumerate([root, *tree.tokens])]
        return Pending(root, tree, {len(tree.tokens): slot}), rows

    def keep(self, slot: int, length: int, pending: Pending, path: Sequence[int]) -> None:
        if len(path) == len(pending.tree.tokens):
            return
        self._back(slot)
        tokens = pending.path_tokens(path)
        self._context.read([Row(token, length + row, (slot,)) for row, token in enumerate(tokens)], wants=False)

    def undo(self, slot: int, length: int, pending: Pending) -> None:
        self._back(slot)

    def _back(self, slot: int) -> None:
        self._context.forget(slot)
        self._context.share(self._num_slots + slot, slot)

    def free(self, slot: int) -> None:
        self._context.forget(self._num_slots + slot)
