"""How many nodes each slot may draft in a step.

`FixedBudget` gives every slot the same number, cut to what can still be used: a request that may emit r more tokens
cannot profit from nodes deeper than r - 1, because the step itself adds one token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from outrider.proposer import Room

__all__ = ["Budget", "FixedBudget"]


class Budget(ABC):
    """Chooses the room of every slot before the proposer is asked."""

    @abstractmethod
    def rooms(self, remaining: Sequence[int]) -> list[Room]:
        """One room per slot; `remaining[b]` is the number of tokens that slot's request may still emit (at least 1)."""


@final
@dataclass(frozen=True)
class FixedBudget(Budget):
    """The same number of nodes in every step."""

    num_nodes: int

    def rooms(self, remaining: Sequence[int]) -> list[Room]:
        return [Room(self.num_nodes if left > 1 else 0, left - 1) for left in remaining]
