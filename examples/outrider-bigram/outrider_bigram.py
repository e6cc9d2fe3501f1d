"""A complete third-party method: remember which token last followed each token, and draft along that memory.

All requests share the memory, which grows while the engine runs. Once the package is installed, it is a method like any
other: `outrider generate "..." --method bigram:num_nodes=3`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from outrider import (
    Commit,
    ConfigError,
    Draft,
    DraftLimit,
    Proposer,
    ProposerSpec,
    SamplingParams,
    Session,
    SessionPlan,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """num_nodes: drafted tokens per step."""

    num_nodes: int = 3

    def __post_init__(self) -> None:
        if self.num_nodes < 1:
            raise ConfigError(f"num_nodes={self.num_nodes} must be at least 1")


@final
class BigramProposer(Proposer):
    """The settings; a method with weights would hold them here too."""

    Config = Config

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=self.config.num_nodes, learns=True)

    def open(self, plan: SessionPlan) -> Session:
        return BigramSession(plan.device)


@final
class BigramSession(Session):
    """The memory, and the last committed token (the root) of every slot."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.follower: dict[int, int] = {}
        self.roots: dict[int, int] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.follower.update(pairwise(tokens))
        self.roots[slot] = tokens[-1]

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        chains = [self._chain(self.roots[slot], min(limit)) for slot, limit in zip(slots, limits, strict=True)]
        return Draft.of_chains(chains, self.device)

    def _chain(self, token: int, length: int) -> list[int]:
        chain: list[int] = []
        while len(chain) < length and token in self.follower:
            token = self.follower[token]
            chain.append(token)
        return chain

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            text = [self.roots[commit.slot], *commit.tokens]
            self.follower.update(pairwise(text))
            self.roots[commit.slot] = text[-1]

    def release(self, slot: int) -> None:
        del self.roots[slot]

    def reset(self) -> None:
        self.follower.clear()
