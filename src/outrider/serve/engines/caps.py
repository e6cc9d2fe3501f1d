"""Upper limits of nodes for single requests, over the budget of a whole engine.

Example: with a cap of 0, a request is decoded plainly in the batch of the others.
"""

from collections.abc import Mapping, Sequence
from typing import final

from outrider.budget import Budget, SlotState
from outrider.draft import Draft
from outrider.proposer import Commit, DraftLimit

__all__ = ["CappedBudget"]


@final
class CappedBudget(Budget):
    """A budget with an upper limit of nodes for some requests, by id; `caps` may change between steps."""

    def __init__(self, inner: Budget, caps: Mapping[int, int]) -> None:
        self.inner = inner
        self.caps = caps
        self.reads_ahead = inner.reads_ahead

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        return [
            limit._replace(num_nodes=min(limit.num_nodes, self.caps.get(state.request, limit.num_nodes)))
            for state, limit in zip(slot_states, self.inner.limits(slot_states, num_waiting), strict=True)
        ]

    def prune(self, draft: Draft) -> Draft:
        return self.inner.prune(draft)

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        self.inner.observe(commits, seconds)

    def reset(self) -> None:
        self.inner.reset()
