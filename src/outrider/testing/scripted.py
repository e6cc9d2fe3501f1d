"""Proposers whose acceptance is known beforehand.

    Scripted      drafts what a function tells it to
    Oracle        drafts exactly what the target will say: accepted to full depth
    Adversary     drafts what the target will not say: never accepted, and nothing is lost but time
    RandomTrees   drafts trees of any shape, right and wrong nodes mixed

Because noise is a function of (seed, position), the oracle knows sampled text beforehand too.
"""

import random
from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers.oracle_transcripts import Transcripts
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["Adversary", "Oracle", "RandomTrees", "Scripted"]


Script = Callable[[Sequence[int], SamplingParams, DraftLimit], Tree]


@final
class Scripted(Proposer):
    """Drafts `script(tokens, sampling, limit)`, where `tokens` is all that is committed, the root last.

    It is made in code, not by name.
    """

    def __init__(self, script: Script, max_nodes: int = 4, feature_layers: tuple[int, ...] = ()) -> None:
        self.script = script
        self._spec = ProposerSpec(max_nodes=max_nodes, feature_layers=feature_layers)

    @property
    def spec(self) -> ProposerSpec:
        return self._spec

    def open(self, plan: SessionPlan) -> "ScriptedSession":
        return ScriptedSession(self.script, plan)


@final
class ScriptedSession(Session):
    """Knows the text of every slot; keeps the features it was given for tests to look at."""

    def __init__(self, script: Script, plan: SessionPlan) -> None:
        self.script = script
        self.plan = plan
        self.tokens: dict[int, list[int]] = {}
        self.samplings: dict[int, SamplingParams] = {}
        self.features: dict[int, list[Tensor]] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.tokens[slot] = list(tokens)
        self.samplings[slot] = sampling
        self.features[slot] = [] if features_TF is None else [features_TF]

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        trees = [
            self.script(self.tokens[slot], self.samplings[slot], limit) if limit.num_nodes else Tree([], [])
            for slot, limit in zip(slots, limits, strict=True)
        ]
        return Draft.of_trees(trees, self.plan.device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            self.tokens[commit.slot] += commit.tokens
            if features_BMF is not None:
                self.features[commit.slot].append(features_BMF[commit.place, commit.rows])

    def release(self, slot: int) -> None:
        del self.tokens[slot], self.samplings[slot], self.features[slot]


class Oracle:
    """Knows the target's text beforehand: decodes plainly once, then drafts from the transcript."""

    def __init__(self, target: Target, depth: int = 4) -> None:
        self.target = target
        self.depth = depth

    def continuation(self, tokens: Sequence[int], sampling: SamplingParams, length: int) -> list[int]:
        """Return the target's own next tokens, ignoring end-of-text tokens."""
        all_of_it = self.target.spec.max_positions
        return Transcripts.of(self.target).continuation(self.target, tokens, sampling, all_of_it)[:length]

    def script(self, tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        return Tree.chain(self.continuation(tokens, sampling, min(limit.num_nodes, limit.max_depth, self.depth)))

    def proposer(self) -> Scripted:
        return Scripted(self.script, self.depth)


class Adversary:
    """Drafts, at every position, a token that the target does not choose there."""

    def __init__(self, target: Target, depth: int = 4) -> None:
        self.oracle = Oracle(target, depth)

    def script(self, tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        right = self.oracle.script(tokens, sampling, limit).tokens
        return Tree.chain([(token + 1) % self.oracle.target.spec.vocab_size for token in right])

    def proposer(self) -> Scripted:
        return Scripted(self.script, self.oracle.depth)


class RandomTrees:
    """Drafts trees of random shape in which about half of the children are what the target will say."""

    def __init__(self, target: Target, num_nodes: int = 8, seed: int = 0) -> None:
        self.oracle = Oracle(target, num_nodes)
        self.num_nodes = num_nodes
        self.seed = seed

    def script(self, tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        draw = random.Random(f"{self.seed} {len(tokens)} {tokens[-1]}")
        right = self.oracle.continuation(tokens, sampling, limit.max_depth)
        vocab = self.oracle.target.spec.vocab_size
        tree = Tree([], [])
        depths: list[int] = []
        for node in range(draw.randint(0, min(limit.num_nodes, self.num_nodes))):
            parent = draw.randrange(-1, node)
            depth = 1 if parent < 0 else depths[parent] + 1
            token = right[depth - 1] if depth <= len(right) and draw.random() < 0.6 else draw.randrange(vocab)
            if depth > limit.max_depth or (parent, token) in zip(tree.parents, tree.tokens, strict=True):
                break
            tree.tokens.append(token)
            tree.parents.append(parent)
            depths.append(depth)
        return tree

    def proposer(self) -> Scripted:
        return Scripted(self.script, self.num_nodes)
