"""Scripted acceptance, an instrument and no method: drafts that are right as often as configured.

The target's text is decoded plainly when a request is admitted (`oracle_transcripts.py`), and drafts are right or wrong
by a script. Node j of a chain is right with probability a_j if the nodes before it are, so a step gives

    tau = 1 + a_1 + a_1 a_2 + a_1 a_2 a_3 + ...        tokens, with a_j the `acceptance` of position j

Everything but proposing is timed as it is. Proposing is a table look-up, so the speedup is an upper limit for any
method that is accepted as often; subtract the method's measured cost of drafting.

    acceptance 0.8, four nodes       tau = 1 + 0.8 + 0.64 + 0.512 + 0.41 = 3.36

Right or wrong is drawn once per request from (seed, prompt), for every position and depth: runs repeat exactly, and
steps are independent of each other. `siblings` puts wrong tokens in front of every node of the chain, so that trees are
verified. Results made with it are marked as scripted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self, final
from zlib import crc32

import numpy as np
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers.oracle_transcripts import Transcripts
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["OracleConfig", "OracleProposer"]


@dataclass(frozen=True, kw_only=True)
class OracleConfig:
    """Settings of scripted acceptance.

    acceptance   probability that a node is right if those before it are, by position; the last holds for all deeper
                 ones; the setting that a bare value fills
    num_nodes    drafted tokens per step, siblings included
    siblings     wrong tokens beside each node of the chain, in front of it; 0 drafts a chain
    num_known    tokens of an answer that are known beforehand; behind them nothing is drafted
    seed         seed of the script
    """

    acceptance: tuple[float, ...] = field(default=(0.8,), metadata={"bare": True})
    num_nodes: int = 4
    siblings: int = 0
    num_known: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.acceptance or not all(0 <= share <= 1 for share in self.acceptance):
            said = "/".join(f"{share:g}" for share in self.acceptance)
            raise ConfigError(f"acceptance={said} must be probabilities between 0 and 1, such as 0.8 or 0.9/0.7/0.5")
        check_bounds(self, siblings=(0, 63), num_known=(1, 1_000_000))
        if not self.siblings < self.num_nodes <= 256:
            raise ConfigError(
                f"num_nodes={self.num_nodes} must be between {self.siblings + 1}, one node with its siblings, and 256"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} must be between 0 and 2**63 - 1")

    @property
    def depth(self) -> int:
        """Nodes of the chain."""
        return self.num_nodes // (self.siblings + 1)

    @property
    def profile(self) -> tuple[float, ...]:
        """The acceptance of every position of the chain."""
        return tuple(self.acceptance[min(place, len(self.acceptance) - 1)] for place in range(self.depth))


@final
class OracleProposer(Proposer):
    """Drafts from the target's own text, with scripted mistakes."""

    Config = OracleConfig
    scripted = True

    def __init__(self, target: Target, config: OracleConfig) -> None:
        if config.siblings + 2 > target.spec.vocab_size:
            raise ConfigError(
                f"siblings={config.siblings} needs a vocabulary of {config.siblings + 2} tokens and the target has "
                f"{target.spec.vocab_size}; lower siblings"
            )
        self.target = target
        self.config = config

    @classmethod
    def load(cls, target: Target, config: OracleConfig) -> Self:
        return cls(target, config)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        siblings = seed % 3
        nodes = (1 + siblings) * (2 + seed % 3)
        return cls(target, OracleConfig(acceptance=(0.9, 0.5), num_nodes=nodes, siblings=siblings, seed=seed))

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=self.config.num_nodes)

    def open(self, plan: SessionPlan) -> Session:
        return OracleSession(self.target, self.config, plan)


@dataclass
class _Script:
    """One answer: `tokens`, how many are committed, and for each start how deep a draft is right."""

    tokens: list[int]
    reach: list[int]
    at: int = 0


@final
class OracleSession(Session):
    """One script per slot. A request whose text leaves its transcript, as sampled text under the ratio tests does, is
    not drafted for any more."""

    def __init__(self, target: Target, config: OracleConfig, plan: SessionPlan) -> None:
        self.target = target
        self.config = config
        self.plan = plan
        self.transcripts = Transcripts.of(target)
        self.scripts: dict[int, _Script] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        length = min(self.config.num_known, self.plan.max_positions - len(tokens))
        known = self.transcripts.continuation(self.target, tokens, sampling, length)
        self.scripts[slot] = _Script(known, self._reach(tokens, len(known)))

    def _reach(self, prompt: Sequence[int], length: int) -> list[int]:
        """Count, for each start in the answer, the right nodes before the first wrong one."""
        # The prompt seeds the draw, so a script does not depend on slots or arrival.
        draw = np.random.default_rng([self.config.seed, crc32(np.asarray(prompt, dtype=np.int64).tobytes())])
        right_TK = draw.random((length, self.config.depth)) < np.array(self.config.profile)
        reach: list[int] = right_TK.cumprod(axis=1).sum(axis=1).tolist()
        return reach

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        trees = [self._draft(self.scripts[slot], limit) for slot, limit in zip(slots, limits, strict=True)]
        return Draft.of_trees(trees, self.plan.device)

    def _draft(self, script: _Script, limit: DraftLimit) -> Tree:
        width = self.config.siblings + 1
        depth = min(self.config.depth, limit.max_depth, limit.num_nodes // width)
        chain = script.tokens[script.at : script.at + max(0, depth)]
        reach = script.reach[script.at] if chain else 0
        vocab_size = self.target.spec.vocab_size
        tokens: list[int] = []
        for place, token in enumerate(chain):
            # Siblings begin at token + 2, so they equal neither the right token nor the wrong one.
            main = (token + 1) % vocab_size if place == reach else token
            tokens += [*((token + 2 + sibling) % vocab_size for sibling in range(width - 1)), main]
        return Tree(tokens, [node // width * width - 1 for node in range(len(tokens))])

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            script = self.scripts[commit.slot]
            end = script.at + len(commit.tokens)
            # A text that left its transcript has no known tokens any more.
            script.at = end if script.tokens[script.at : end] == commit.tokens else len(script.tokens)

    def release(self, slot: int) -> None:
        del self.scripts[slot]

    @property
    def num_bytes(self) -> int:
        return sum(16 * len(script.tokens) for script in self.scripts.values())
