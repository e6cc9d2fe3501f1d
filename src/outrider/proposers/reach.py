"""Drafting as far as a drafter reaches: its own context may be shorter than the target's.

A draft model or head made for P positions drafts while the text and the draft fit into P. Nothing behind that is
drafted, and a text of P tokens is decoded plainly from there on: the drafter's state of that slot is released. The text
is the target's either way.

    P = 64, a text of 61 tokens     at most 3 nodes deep
    a text of 64 tokens             no draft

Where the drafter reaches as far as the batch, `within_reach` changes nothing.

Shapes: B slots, M rows, V vocabulary, F features, T prompt tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.proposer import Commit, DraftLimit, Kept, Reused, Session, SessionPlan
from outrider.sampling import SamplingParams

__all__ = ["ReachSession", "within_reach"]


def within_reach(num_positions: int, plan: SessionPlan, open: Callable[[SessionPlan], Session]) -> Session:
    """Return a session that drafts up to so many positions, with state for no more of them."""
    if num_positions >= plan.max_positions:
        return open(plan)
    return ReachSession(open(replace(plan, max_positions=num_positions)), num_positions, plan.device)


@final
class ReachSession(Session):
    """A session behind a filter: it receives only what concerns texts within its reach."""

    def __init__(self, inner: Session, num_positions: int, device: torch.device) -> None:
        self.inner = inner
        self.num_positions = num_positions
        self.device = device
        self.lengths: dict[int, int] = {}
        """Lengths of the texts within reach, in tokens, by slot."""

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        if len(tokens) < self.num_positions:
            self.inner.admit(slot, tokens, sampling, features_TF)
            self.lengths[slot] = len(tokens)

    def keep(self, slot: int) -> Kept | None:
        return self.inner.keep(slot) if slot in self.lengths else None

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        if len(tokens) < self.num_positions:
            self.inner.reuse(slot, tokens, sampling, features_TF, reused)
            self.lengths[slot] = len(tokens)

    def num_pending(self, slot: int) -> int:
        return self.inner.num_pending(slot) if slot in self.lengths else 0

    def catch_up(self, slots: Sequence[int]) -> None:
        self.inner.catch_up([slot for slot in slots if slot in self.lengths])

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        within = {
            slot: DraftLimit(limit.num_nodes, min(limit.max_depth, self.num_positions - self.lengths[slot]))
            for slot, limit in zip(slots, limits, strict=True)
            if slot in self.lengths
        }
        if not within:
            return Draft.empty(len(slots), self.device)
        draft = self.inner.propose(list(within), list(within.values()))
        return draft if len(within) == len(slots) else _spread(draft, list(within), slots)

    def part(self, slot: int) -> str:
        return self.inner.part(slot) if slot in self.lengths else ""

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        known = [commit for commit in commits if commit.slot in self.lengths]
        if known:
            self.inner.observe(known, features_BMF)
        for commit in known:
            self.lengths[commit.slot] += len(commit.tokens)
            # The engine releases the slot again when the request ends; `lengths` makes that harmless.
            if self.lengths[commit.slot] >= self.num_positions:
                self.release(commit.slot)

    def release(self, slot: int) -> None:
        if self.lengths.pop(slot, None) is not None:
            self.inner.release(slot)

    def reset(self) -> None:
        self.inner.reset()

    @property
    def num_bytes(self) -> int:
        return self.inner.num_bytes


def _spread(draft: Draft, drafted: Sequence[int], slots: Sequence[int]) -> Draft:
    """Return the draft of some slots as one of all of them; the others have none."""
    trees = dict(zip(drafted, draft.trees, strict=True))
    probs_BMV = None
    if draft.probs_BMV is not None:
        probs_BMV = draft.probs_BMV.new_zeros(len(slots), *draft.probs_BMV.shape[1:])
        probs_BMV[[list(slots).index(slot) for slot in drafted]] = draft.probs_BMV
    return Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots], draft.device, probs_BMV)
