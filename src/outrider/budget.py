"""A budget decides how many nodes each slot drafts in a step, and how many of them are verified.

The engine calls it three times in a step: `limits` before the proposer drafts, `prune` on the draft, and `observe` with
the result. The text never depends on a budget, only the time does.

`FixedBudget` gives every slot the same number of nodes. A request that may emit r more tokens has no use for nodes
deeper than r - 1, because the step itself adds one token. `AdaptiveBudget` (`adaptive/controller.py`) decides from
measured costs and recent acceptance.

**Pruning and the law.** Under the coupled rule, and for drafts that are a function of the context, `prune` may look at
anything. A sampled draft under a ratio test (`Draft.probs_BMV` is given) may be cut only by what was known before it
was drawn: choosing among the draws changes the law q that the test divides by. With p = (0.5, 0.5) and q = (0.8, 0.2),
dropping the draft whenever it is token 0 gives P(0) = 0.8 * 0.5 = 0.4, not 0.5. `tests/unit/test_budget.py` enumerates
both cases.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Literal, NamedTuple, final

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError, nearest
from outrider.proposer import Commit, DraftLimit
from outrider.target import Target

__all__ = ["BUDGETS", "Budget", "BudgetChoice", "ChainBudget", "FixedBudget", "SlotState", "budget_of", "load_budget"]

BudgetChoice = Literal["fixed", "auto"]

BUDGETS: Final = {"fixed": "outrider.budget:FixedBudget", "auto": "outrider.adaptive.controller:AdaptiveBudget"}
"""Name -> "module:Class"; a class is imported when its budget is first wanted."""


class SlotState(NamedTuple):
    """The state of a slot, as the budget sees it.

    request         id of its request
    num_remaining   tokens that the request may still emit, at least 1
    context_length  committed tokens, the root included
    greedy          True at temperature 0
    num_pending     committed tokens that the proposer must read before it can draft
    num_forced      tokens that the form of its answer forces now: they are its draft, and the proposer is not asked
    """

    request: int
    num_remaining: int
    context_length: int
    greedy: bool
    num_pending: int = 0
    num_forced: int = 0


class Budget(ABC):
    """A policy for how much is drafted and verified. One budget serves one engine."""

    reads_ahead: bool = True
    """True if the proposer reads a prompt right after the target, False if only before it drafts."""

    @abstractmethod
    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        """Return one limit per slot, before the proposer drafts.

        Args:
            slot_states: the running slots, in order.
            num_waiting: requests that wait for a slot. While there is one, a slot that becomes free is taken.
        """

    @abstractmethod
    def prune(self, draft: Draft) -> Draft:
        """Return the part of the draft to verify: the draft, or `draft.keep(...)`; see above for what is allowed."""

    @abstractmethod
    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """Learn from the result of a step.

        Args:
            commits: one per slot, in the order of the slots.
            seconds: `propose_s`, `verify_s` and the other parts of the step so far.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget what earlier requests taught. No slot is in use."""


@final
@dataclass(frozen=True)
class FixedBudget(Budget):
    """The same number of nodes in every step."""

    num_nodes: int

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        return [
            DraftLimit(
                self.num_nodes if state.num_remaining > 1 and not state.num_forced else 0, state.num_remaining - 1
            )
            for state in slot_states
        ]

    def prune(self, draft: Draft) -> Draft:
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """Do nothing: a fixed budget learns nothing."""

    def reset(self) -> None:
        """Do nothing: a fixed budget has learnt nothing."""


@final
class ChainBudget(Budget):
    """Another budget, for a target that reads chains only: of a tree it keeps the first child of each node.

    The first child is known before anything is drawn, and is itself drawn from q, so the law stays (see above).
    """

    def __init__(self, inner: Budget) -> None:
        self.inner = inner
        self.reads_ahead = inner.reads_ahead

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        return self.inner.limits(slot_states, num_waiting)

    def prune(self, draft: Draft) -> Draft:
        return self.inner.prune(draft if draft.is_chain else draft.keep([first_children(tree) for tree in draft.trees]))

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        self.inner.observe(commits, seconds)

    def reset(self) -> None:
        self.inner.reset()


def first_children(tree: Tree) -> list[int]:
    """Return the nodes of the chain that goes from each node to its first child.

    >>> first_children(Tree([5, 6, 7, 8], [-1, -1, 0, 1]))
    [0, 2]
    """
    chain: list[int] = []
    for node, parent in enumerate(tree.parents):
        if parent == (chain[-1] if chain else -1):
            chain.append(node)
    return chain


def budget_of(choice: BudgetChoice | Budget, target: Target, num_nodes: int) -> Budget:
    """Return the budget of an engine: a named one or the given one, as the target can read its drafts.

    Raises:
        ConfigError: if there is no budget with that name.
    """
    budget = choice if isinstance(choice, Budget) else load_budget(choice, target, num_nodes)
    return ChainBudget(budget) if target.spec.drafts == "chains" else budget


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
