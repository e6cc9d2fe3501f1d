"""Plain decoding: the empty draft.

The baseline of every comparison is this proposer in the same engine, so that a speedup is due to the draft alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.proposer import Commit, DraftLimit, Proposer, Session, SessionPlan
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["NoConfig", "NoProposer"]


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """Plain decoding has no settings."""


@final
class NoProposer(Proposer):
    """Drafts nothing."""

    Config = NoConfig

    @classmethod
    def load(cls, target: Target, config: NoConfig) -> Self:
        return cls()

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        return cls()

    @property
    def max_nodes(self) -> int:
        return 0

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return ()

    @property
    def learns(self) -> bool:
        return False

    @property
    def num_bytes(self) -> int:
        return 0

    def open(self, plan: SessionPlan) -> Session:
        return NoSession(plan.device)


@final
class NoSession(Session):
    """Keeps nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        """Nothing to keep."""

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        return Draft.empty(len(slots), self.device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        """Nothing to learn."""

    def release(self, slot: int) -> None:
        """Nothing to free."""

    def reset(self) -> None:
        """Nothing to forget."""

    @property
    def num_bytes(self) -> int:
        return 0
