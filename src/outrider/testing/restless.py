"""Budgets whose every step is different: the fake of the budget seam.

    Restless   limits and cuts of random size, often empty, from a seed
    Metronome  any budget, told that every step took as long as a list says

A budget may answer anything and the text stays the same, so the contract holds with these too.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import final

from outrider.adaptive.controller import AdaptiveBudget
from outrider.budget import Budget, SlotState
from outrider.draft import Draft
from outrider.proposer import Commit, DraftLimit

__all__ = ["Metronome", "Restless"]


@final
class Restless(Budget):
    """Draws the size of every limit, and how many nodes of every draft are kept: the first ones."""

    reads_ahead = False

    def __init__(self, num_nodes: int, seed: int = 0) -> None:
        self.num_nodes = num_nodes
        self.draw = random.Random(seed)

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        return [
            DraftLimit(self._size(self.num_nodes), self.draw.randint(0, state.num_remaining - 1))
            for state in slot_states
        ]

    def prune(self, draft: Draft) -> Draft:
        return draft.keep([range(self._size(count)) for count in draft.num_nodes])

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """Learn nothing."""

    def reset(self) -> None:
        """Forget nothing."""

    def _size(self, most: int) -> int:
        return self.draw.choice([0, self.draw.randint(0, most), most])


@final
class Metronome(Budget):
    """Passes everything on but the seconds: proposing takes those of `propose_s`, in turn, from the beginning on, and a
    forward what the table says."""

    def __init__(self, inner: AdaptiveBudget, propose_s: Sequence[float]) -> None:
        self.inner = inner
        self.num_rows = 0
        self.reads_ahead = inner.reads_ahead
        self.propose_s = cycle(propose_s)

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        return self.inner.limits(slot_states, num_waiting)

    def prune(self, draft: Draft) -> Draft:
        draft = self.inner.prune(draft)
        self.num_rows = len(draft.real_rows)
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        forward_s = self.inner.costs.forward_s(len(commits), self.num_rows, 0)
        self.inner.observe(commits, {**seconds, "propose_s": next(self.propose_s), "verify_s": forward_s})

    def reset(self) -> None:
        self.inner.reset()
