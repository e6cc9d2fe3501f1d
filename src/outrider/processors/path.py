"""The logits of one walk down a draft, as the processors of its request change them.

Every acceptance rule walks one path: it looks at a row only after it has taken the row's token. So the state is forked
once, at the first accepted token, and advanced with the walk; the rows of other branches are never looked at.

    draft      root ── cat ── sat           rows read by a walk that accepts "cat" and then misses: root, cat
                    └─ dog

Shapes: M rows, V vocabulary.
"""

from typing import final

import torch
from torch import Tensor

from outrider.draft import Tree
from outrider.processors.base import ProcessorState
from outrider.sampling import SamplingParams, distribution, has_law

__all__ = ["NoLawError", "PathLogits", "PathProbs"]


class NoLawError(ArithmeticError):
    """A row that the walk reached has no distribution."""


@final
class PathLogits:
    """`rows[row]` gives the changed logits [V] of a row: the row that was read last, or a child of it."""

    def __init__(self, logits_MV: Tensor, tree: Tree, state: ProcessorState) -> None:
        self._logits_MV = logits_MV
        self._tree = tree
        self._state = state
        self._is_forked = False  # the row of the root needs no copy: changing logits changes no state
        self._row = 0

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the changed logits."""
        return torch.promote_types(self._logits_MV.dtype, torch.float32)

    def __getitem__(self, row: int) -> Tensor:
        if row != self._row:
            assert self._tree.parents[row - 1] + 1 == self._row, f"row {row} is not a child of row {self._row}"
            if not self._is_forked:
                self._state, self._is_forked = self._state.fork(), True
            self._state.advance(self._tree.tokens[row - 1])
            self._row = row
        return self._state.transform(self._logits_MV[row])


@final
class PathProbs:
    """`rows[row]` gives the distribution [V] of a row, in the same order."""

    def __init__(self, logits_MV: PathLogits, sampling: SamplingParams) -> None:
        self._logits_MV = logits_MV
        self._sampling = sampling

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the distributions."""
        return self._logits_MV.dtype

    def __getitem__(self, row: int) -> Tensor:
        """
        Raises:
            NoLawError: if the row has no distribution.
        """
        logits_1V = self._logits_MV[row][None]
        if not has_law(logits_1V).item():
            raise NoLawError(f"row {row} has no distribution")
        return distribution(logits_1V, self._sampling)[0]
