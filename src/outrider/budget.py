"""How many nodes each slot may draft in a step, and how many of them are verified.

A budget is asked three times in a step: for the `rooms` before the proposer drafts, for a `cut` of what it drafted, and
to `observe` what the step brought. Whatever it answers, the text is the same; it decides about time alone.

`FixedBudget` gives every slot the same number, cut to what can still be used: a request that may emit r more tokens
cannot profit from nodes deeper than r - 1, because the step itself adds one token. `AdaptiveBudget` (`adaptive.py`)
decides from measured costs and from what was accepted lately.

**What a cut may look at.** Under the coupled rule, at anything: the text does not depend on the draft. The same holds
for drafts that are a function of the context. A sampled draft under a ratio test (`Draft.probs_BMV` is given) may be
cut only by what was known before it was drawn. A cut that looks at its tokens chooses among the draws, and they no
longer have the law q that the test divides by. With p = (0.5, 0.5) and q = (0.8, 0.2), dropping the draft whenever it
is token 0 gives P(0) = 0.8 * 0.5 = 0.4, not 0.5. `tests/unit/test_budget.py` enumerates both cases.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from outrider.draft import Draft
from outrider.proposer import Commit, Room

__all__ = ["Ask", "Budget", "FixedBudget"]


class Ask(NamedTuple):
    """What a slot brings to the budget.

    request         the id of its request
    num_remaining   tokens that the request may still emit, at least 1
    context_length  committed tokens, the root included
    greedy          whether its temperature is 0
    num_behind      committed tokens that the proposer has to read before it can draft
    """

    request: int
    num_remaining: int
    context_length: int
    greedy: bool
    num_behind: int = 0


class Budget(ABC):
    """Chooses how much is drafted and verified. One budget serves one engine."""

    reads_ahead: bool = True
    """Whether a prompt is read by the proposer as soon as the target has read it, or before it drafts."""

    @abstractmethod
    def rooms(self, asks: Sequence[Ask], num_waiting: int = 0) -> list[Room]:
        """One room per slot, before the proposer is asked.

        Args:
            num_waiting: requests that wait for a slot. While there is one, a slot that falls free is taken.
        """

    @abstractmethod
    def cut(self, draft: Draft) -> Draft:
        """What of the draft is verified: it, or `draft.keep(...)`. See above for what the choice may depend on."""

    @abstractmethod
    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """What the step brought.

        Args:
            commits: of every slot, in the order of the asks.
            seconds: `propose_s`, `verify_s` and the other parts of the step as far as it has come.
        """

    @abstractmethod
    def reset(self) -> None:
        """The requests that come now may be of another kind. No slot is in use."""


@final
@dataclass(frozen=True)
class FixedBudget(Budget):
    """The same number of nodes in every step."""

    num_nodes: int

    def rooms(self, asks: Sequence[Ask], num_waiting: int = 0) -> list[Room]:
        return [Room(self.num_nodes if ask.num_remaining > 1 else 0, ask.num_remaining - 1) for ask in asks]

    def cut(self, draft: Draft) -> Draft:
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""
