"""A proposer and a budget around sound ones, whose calls can be made to fail, to answer nonsense or to spoil what they
are given."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from outrider.budget import Budget, FixedBudget, SlotState
from outrider.draft import Draft
from outrider.proposer import (
    Commit,
    DraftLimit,
    Kept,
    Proposer,
    ProposerSpec,
    Reused,
    Session,
    SessionPlan,
)
from outrider.sampling import SamplingParams

Fault = Callable[[Callable[[], Any], tuple[Any, ...]], Any]
"""Takes the call that would be right, and its arguments; what it returns is returned."""


class Faults:
    """Counts calls by name, and lets the chosen ones fail.

    at      name -> numbers of its calls, from 1; empty for all of them
    fault   what happens at them
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.at: dict[str, frozenset[int]] = {}
        self.fault: Fault = lambda right, given: right()

    def call(self, name: str, right: Callable[[], Any], *given: Any) -> Any:
        self.counts[name] += 1
        chosen = self.at.get(name)
        if chosen is not None and (not chosen or self.counts[name] in chosen):
            return self.fault(right, given)
        return right()

    def heal(self) -> None:
        self.at = {}


def raising(error: BaseException, *, late: bool = False) -> Fault:
    """Raise before the call has its effect, or after."""

    def fault(right: Callable[[], Any], given: tuple[Any, ...]) -> Any:
        if late:
            right()
        raise error

    return fault


def answering(value: Any) -> Fault:
    """Return this in place of what is right."""

    def fault(right: Callable[[], Any], given: tuple[Any, ...]) -> Any:
        right()
        return value

    return fault


def spoiling(right: Callable[[], Any], given: tuple[Any, ...]) -> Any:
    """Do what is right, and then empty every list that was given and overwrite every tensor."""
    value = right()
    for one in given:
        _spoil(one)
    return value


def _spoil(given: Any) -> None:
    if isinstance(given, Tensor):
        with torch.inference_mode():  # the target's features are inference tensors
            given.fill_(float("nan"))
    elif isinstance(given, Kept):
        _spoil(given.features_TF)
    elif isinstance(given, tuple):
        for one in given:
            _spoil(one)
    elif isinstance(given, list):
        for one in given:
            _spoil(one)
        given.clear()
    elif isinstance(given, dict):
        given.clear()


class FailingSession(Session):
    """Passes every call on. `slots` are those that hold a request."""

    def __init__(self, inner: Session, faults: Faults) -> None:
        self.inner, self.faults = inner, faults
        self.slots: set[int] = set()

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        def right() -> None:
            self.inner.admit(slot, list(tokens), sampling, None if features_TF is None else features_TF.clone())
            self.slots.add(slot)

        self.faults.call("admit", right, tokens, features_TF)

    def keep(self, slot: int) -> Kept | None:
        kept: Kept | None = self.faults.call("keep", lambda: self.inner.keep(slot))
        return kept

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        def right() -> None:
            features = None if features_TF is None else features_TF.clone()
            self.inner.reuse(slot, list(tokens), sampling, features, reused)
            self.slots.add(slot)

        self.faults.call("reuse", right, tokens, features_TF)

    def num_pending(self, slot: int) -> int:
        found: int = self.faults.call("num_pending", lambda: self.inner.num_pending(slot))
        return found

    def catch_up(self, slots: Sequence[int]) -> None:
        self.faults.call("catch_up", lambda: self.inner.catch_up(list(slots)), slots)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        draft: Draft = self.faults.call("propose", lambda: self.inner.propose(list(slots), list(limits)), slots, limits)
        return draft

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        def right() -> None:
            own = [one._replace(rows=list(one.rows), tokens=list(one.tokens)) for one in commits]
            self.inner.observe(own, None if features_BMF is None else features_BMF.clone())

        self.faults.call("observe", right, commits, features_BMF)

    def release(self, slot: int) -> None:
        def right() -> None:
            self.inner.release(slot)
            self.slots.discard(slot)

        self.faults.call("release", right)

    def reset(self) -> None:
        self.faults.call("reset", self.inner.reset)


class FailingProposer(Proposer):
    """Passes every call on; `session` is the newest one."""

    session: FailingSession

    def __init__(self, inner: Proposer, faults: Faults) -> None:
        super().__init__(None)
        self.inner, self.faults = inner, faults

    @property
    def spec(self) -> ProposerSpec:
        spec: ProposerSpec = self.faults.call("spec", lambda: self.inner.spec)
        return spec

    def open(self, plan: SessionPlan) -> Session:
        def right() -> FailingSession:
            self.session = FailingSession(self.inner.open(plan), self.faults)
            return self.session

        session: Session = self.faults.call("open", right, plan)
        return session


class FailingBudget(Budget):
    """Passes every call on to a fixed budget."""

    def __init__(self, num_nodes: int, faults: Faults) -> None:
        self.inner, self.faults = FixedBudget(num_nodes), faults

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        right: list[DraftLimit] = self.faults.call(
            "limits", lambda: self.inner.limits(slot_states, num_waiting), slot_states
        )
        return right

    def prune(self, draft: Draft) -> Draft:
        pruned: Draft = self.faults.call("prune", lambda: self.inner.prune(draft))
        return pruned

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        self.faults.call("learn", lambda: self.inner.observe(commits, seconds), commits, seconds)

    def reset(self) -> None:
        self.faults.call("forget", self.inner.reset)
