"""Prompt lookup: the text repeats itself, so look the last words up in it (Saxena 2023; vLLM's `ngram`).

The longest n in [min_n, max_n] whose last n tokens occurred before gives the draft: the tokens that followed. It costs
nothing to train and almost nothing to run, and pays where answers copy: edits, summaries, code, quotes. Elsewhere it
finds no match and the step is plain.

    context  "the red fox saw the red"      n = 2: "the red" was followed by "fox saw the red"

With the settings of vLLM (`policy="earliest"`) drafts equal vLLM's; `latest` takes the most recent occurrence.
`num_candidates` above 1 merges several continuations into a tree. The index is `ngram_index.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree, tree_of_paths
from outrider.errors import ConfigError, nearest
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers.lookup.ngram_index import NgramIndex, Policy
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["NgramConfig", "NgramProposer"]


@dataclass(frozen=True, kw_only=True)
class NgramConfig:
    """Settings of prompt lookup.

    num_nodes        drafted tokens per step
    min_n, max_n     lengths of the n-gram looked up, the longest first
    policy           occurrence that is continued: "earliest" (as vLLM) or "latest"
    num_candidates   distinct continuations to merge into a tree; 1 drafts a chain
    """

    num_nodes: int = 8
    min_n: int = 2
    max_n: int = 4
    policy: Policy = "latest"
    num_candidates: int = 1

    def __post_init__(self) -> None:
        check_bounds(self, num_nodes=(1, 256), num_candidates=(1, 64))
        if not 1 <= self.min_n <= self.max_n <= 64:
            raise ConfigError(f"min_n={self.min_n} and max_n={self.max_n} must satisfy 1 <= min_n <= max_n <= 64")
        if self.policy not in ("earliest", "latest"):
            raise ConfigError(f"unknown policy '{self.policy}'{nearest(self.policy, ('earliest', 'latest'))}")


@final
class NgramProposer(Proposer):
    """Prompt lookup with its settings."""

    Config = NgramConfig
    config: NgramConfig

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        policy: Policy = "latest" if seed % 2 else "earliest"
        return cls(
            NgramConfig(min_n=1, max_n=1 + seed % 3, num_nodes=3 + seed, policy=policy, num_candidates=1 + seed % 3)
        )

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=self.config.num_nodes)

    def open(self, plan: SessionPlan) -> Session:
        return NgramSession(self.config, plan.device)


@final
class NgramSession(Session):
    """One index per slot."""

    def __init__(self, config: NgramConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.indices: dict[int, NgramIndex] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        index = NgramIndex(self.config.min_n, self.config.max_n, reserve=len(tokens) + 256)
        index.extend(tokens)
        self.indices[slot] = index

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        return Draft.of_trees(
            [self._draft(self.indices[slot], limit) for slot, limit in zip(slots, limits, strict=True)], self.device
        )

    def _draft(self, index: NgramIndex, limit: DraftLimit) -> Tree:
        if min(limit) < 1:
            return Tree([], [])
        # A chain is as deep as it has nodes, so the smaller bound holds.
        matches = index.draft(min(limit), self.config.policy, self.config.num_candidates)
        paths = [match.tokens.tolist() for match in matches]
        return Tree.chain(paths[0]) if len(paths) == 1 else tree_of_paths(paths, limit.num_nodes)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            self.indices[commit.slot].extend(commit.tokens)

    def release(self, slot: int) -> None:
        del self.indices[slot]

    @property
    def num_bytes(self) -> int:
        return sum(index.memory_bytes for index in self.indices.values())
