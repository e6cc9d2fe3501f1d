"""Plain decoding: the empty draft.

The baseline of every comparison is this proposer in the same engine, so that a speedup is due to the draft alone.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.proposer import Commit, DraftLimit, NoSettings, Proposer, ProposerSpec, Session, SessionPlan
from outrider.sampling import SamplingParams

__all__ = ["NoProposer"]


@final
class NoProposer(Proposer):
    """The empty draft."""

    def __init__(self, config: NoSettings | None = None) -> None:
        super().__init__(config or NoSettings())

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=0)

    def open(self, plan: SessionPlan) -> Session:
        return NoSession(plan.device)


@final
class NoSession(Session):
    """A session without state."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        """Keep nothing."""

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        return Draft.empty(len(slots), self.device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        """Learn nothing."""

    def release(self, slot: int) -> None:
        """Free nothing."""
