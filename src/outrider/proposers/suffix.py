"""Suffix decoding: what most often followed this text before, here or in earlier answers (arXiv 2411.04975).

Every string of the prompt, of the answer so far and of earlier answers is counted in suffix trees. The longest end of
the context that occurred before is continued along its most frequent next tokens while they are probable enough; a
longer match earns a longer draft. The score of a draft is the sum of its nodes' path probabilities, that is the number
of tokens it expects to be accepted.

    answers so far "a b c d", "a b c e", "a b c d"; context "... a b"    draft c (3/3), d (2/3); score 1 + 0.67

Agents, batch jobs and any traffic that repeats itself profit most, the more the longer the engine runs: `learns` is
true, and benchmarks reset it between repeats or are marked "warm". Defaults are those of Arctic Inference and vLLM.
`lookup/suffix_index.py` is the index, `corpus/` the files that hold texts between processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError, nearest
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers.lookup.slot_index import NO_FILES, SlotIndex, TextFiles
from outrider.proposers.lookup.suffix_index import Mode
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["SuffixConfig", "SuffixProposer"]


@dataclass(frozen=True, kw_only=True)
class SuffixConfig:
    """Settings of suffix decoding.

    num_nodes            most nodes per step
    max_depth            cap on match and draft together
    max_cached_requests  earlier answers kept, first in first out; 0 none, -1 all
    factor, offset       a match of length m drafts at most m * factor + offset tokens
    min_token_prob       stop where a path becomes less probable than this
    mode                 "path" drafts a chain, "tree" the most probable nodes of all continuations
    corpus               a file of `outrider corpus build`, looked up beside the request and earlier answers
    save                 corpus file that answers are merged into when the program ends; it may be the same file
    """

    num_nodes: int = 16
    max_depth: int = 24
    max_cached_requests: int = 10_000
    factor: float = 1.0
    offset: float = 0.0
    min_token_prob: float = 0.1
    mode: Mode = "path"
    corpus: str | None = None
    save: str | None = None

    def __post_init__(self) -> None:
        check_bounds(self, num_nodes=(1, 256), max_depth=(2, 256))
        if self.max_cached_requests < -1:
            raise ConfigError(f"max_cached_requests={self.max_cached_requests} must be -1 (all), 0 (none) or more")
        if self.factor < 0:
            raise ConfigError(f"factor={self.factor} must not be negative")
        check_bounds(self, min_token_prob=(0, 1))
        if self.mode not in ("path", "tree"):
            raise ConfigError(f"unknown mode '{self.mode}'{nearest(self.mode, ('path', 'tree'))}")


@final
class SuffixProposer(Proposer):
    """Suffix decoding with its settings."""

    Config = SuffixConfig

    def __init__(self, config: SuffixConfig, files: TextFiles = NO_FILES) -> None:
        self.config = config
        self.files = files

    @classmethod
    def load(cls, target: Target, config: SuffixConfig) -> Self:
        return cls(config, TextFiles.of(config.corpus, config.save, target))

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        mode: Mode = "tree" if seed % 2 else "path"
        return cls(
            SuffixConfig(num_nodes=4 + seed, max_depth=8, factor=2.0, mode=mode, max_cached_requests=seed % 3 - 1)
        )

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=self.config.num_nodes, learns=self.config.max_cached_requests != 0)

    def open(self, plan: SessionPlan) -> Session:
        index = SlotIndex(self.config.max_depth, self.config.max_cached_requests, self.files)
        return SuffixSession(self.config, index, plan.device)


@final
class SuffixSession(Session):
    """The trees of the running requests and of earlier answers."""

    def __init__(self, config: SuffixConfig, index: SlotIndex, device: torch.device) -> None:
        self.config = config
        self.index = index
        self.device = device

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.index.open(slot, tokens)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        return Draft.of_trees(
            [self._draft(slot, limit) for slot, limit in zip(slots, limits, strict=True)], self.device
        )

    def _draft(self, slot: int, limit: DraftLimit) -> Tree:
        if min(limit) < 1:
            return Tree([], [])
        config = self.config
        found = self.index.speculate(
            slot, limit.num_nodes, config.factor, config.offset, config.min_token_prob, config.mode
        )
        return _cut(Tree(found.tokens.tolist(), found.parents.tolist()), limit.max_depth)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            self.index.append(commit.slot, commit.tokens)

    def release(self, slot: int) -> None:
        self.index.close(slot)

    def reset(self) -> None:
        self.index.clear()

    def close(self) -> None:
        self.index.save()

    @property
    def num_bytes(self) -> int:
        return self.index.num_bytes


def _cut(tree: Tree, max_depth: int) -> Tree:
    # No tree is deeper than it has nodes.
    if len(tree.tokens) <= max_depth:
        return tree
    kept = [node for node, depth in enumerate(tree.depths()) if depth <= max_depth]
    index = {node: place for place, node in enumerate(kept)}
    return Tree([tree.tokens[node] for node in kept], [index.get(tree.parents[node], -1) for node in kept])
