"""How many nodes each slot may draft in a step, and how many of them are verified.

A budget is asked three times in a step: for the `limits` before the proposer drafts, to `prune` what it drafted, and
to `observe` what the step brought. Whatever it answers, the text is the same; it decides about time alone.

`FixedBudget` gives every slot the same number, cut to what can still be used: a request that may emit r more tokens
cannot profit from nodes deeper than r - 1, because the step itself adds one token. `AdaptiveBudget`
(`adaptive/controller.py`) decides from measured costs and from what was accepted lately.

**What a cut may look at.** Under the coupled rule, at anything: the text does not depend on the draft. The same holds
for drafts that are a function of the context. A sampled draft under a ratio test (`Draft.probs_BMV` is given) may be
cut only by what was known before it was drawn. A cut that looks at its tokens chooses among the draws, and they no
longer have the law q that the test divides by. With p = (0.5, 0.5) and q = (0.8, 0.2), dropping the draft whenever it
is token 0 gives P(0) = 0.8 * 0.5 = 0.4, not 0.5. `tests/unit/test_budget.py` enumerates both cases.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Literal, NamedTuple, final

from outrider.draft import Draft
from outrider.errors import ConfigError, nearest
from outrider.proposer import Commit, DraftLimit
from outrider.target import Target

__all__ = ["BUDGETS", "Budget", "BudgetChoice", "FixedBudget", "SlotState", "load_budget"]

BudgetChoice = Literal["fixed", "auto"]

BUDGETS: Final = {"fixed": "outrider.budget:FixedBudget", "auto": "outrider.adaptive.controller:AdaptiveBudget"}
"""Name -> "module:Class"; a class is imported when its budget is first wanted."""


class SlotState(NamedTuple):
    """What a slot brings to the budget.

    request         the id of its request
    num_remaining   tokens that the request may still emit, at least 1
    context_length  committed tokens, the root included
    greedy          whether its temperature is 0
    num_pending     committed tokens that the proposer has to read before it can draft
    """

    request: int
    num_remaining: int
    context_length: int
    greedy: bool
    num_pending: int = 0


class Budget(ABC):
    """Chooses how much is drafted and verified. One budget serves one engine."""

    reads_ahead: bool = True
    """Whether a prompt is read by the proposer as soon as the target has read it, or before it drafts."""

    @abstractmethod
    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        """One limit per slot, before the proposer is asked.

        Args:
            num_waiting: requests that wait for a slot. While there is one, a slot that falls free is taken.
        """

    @abstractmethod
    def prune(self, draft: Draft) -> Draft:
        """What of the draft is verified: it, or `draft.keep(...)`. See above for what the choice may depend on."""

    @abstractmethod
    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """What the step brought.

        Args:
            commits: of every slot, in the order of the slots.
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

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        return [
            DraftLimit(self.num_nodes if state.num_remaining > 1 else 0, state.num_remaining - 1)
            for state in slot_states
        ]

    def prune(self, draft: Draft) -> Draft:
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""


def load_budget(name: str, target: Target, num_nodes: int) -> Budget:
    """Return the budget with a name, for at most `num_nodes` nodes per slot.

    Raises:
        ConfigError: if there is no budget with that name.
    """
    if name not in list(BUDGETS):  # whatever was given, hashable or not
        raise ConfigError(f"unknown budget '{name}'{nearest(name, BUDGETS)}")
    if name == "fixed" or num_nodes == 0:
        return FixedBudget(num_nodes)
    module, _, attribute = BUDGETS[name].partition(":")
    budget: Budget = getattr(import_module(module), attribute).for_target(target, num_nodes)
    return budget
