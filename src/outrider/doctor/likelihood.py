"""The likelihood that a drafter gives to the target's own texts, and whether another one gives more, by a paired test.

Counts of right guesses waste most of what a drafter says: two readings of one checkpoint guess alike nearly everywhere,
yet one of them is surer where it is right. So the score of guess k at a position is

    s_k = log((1 - FLOOR) q_k(y_k) + FLOOR / V)

with y_k the text's token, q_k the drafter's distribution at temperature 1, behind guesses that were drawn from it and
happened to be the text's own. The floor bounds the loss where q_k(y_k) = 0, as outside of a reduced vocabulary.

Two readings are compared where both have a score. A position counts one nat at most, so that a few surprises do not
outweigh all others. Differences are summed over blocks of eight positions, since neighbours share their luck; `Gain.z`
is the mean of these sums over its standard error.

Worked example: with q_1 0.5 instead of 0.25 everywhere, the gain is log 2 = 0.69 nats per position.

Shapes: B slots, M rows, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.engine import Engine
from outrider.noise import Stream
from outrider.params import SamplingParams
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.tuning.replays.known import KnownText, ReplayTarget
from outrider.tuning.replays.texts import Text

__all__ = ["Gain", "Likelihood", "gain", "likelihood"]

BLOCK: Final = 8
FLOOR: Final = 0.01
MOST: Final = 1.0
"""Nats that one position counts at most."""
DEPTH: Final = 2
"""Guesses of each position that are scored: those behind them repeat what these say."""
MOST_SLOTS: Final = 16


class Gain(NamedTuple):
    """The gain of one reading over another, in nats per position, and by how many standard errors it is one."""

    nats: float
    error: float

    @property
    def z(self) -> float:
        if self.error:
            return self.nats / self.error
        return math.copysign(math.inf, self.nats) if self.nats else 0.0


Scores = Sequence[Sequence[float]]
"""Scores by position, and at each position by depth, as far as the guesses before were drawn right."""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Scores of one drafter, text by text."""

    texts: Sequence[Scores]

    @property
    def nats(self) -> float:
        """The mean score of first guesses."""
        firsts = [scores[0] for text in self.texts for scores in text if scores]
        return fmean(firsts) if firsts else -math.inf


def gain(better: Likelihood, base: Likelihood) -> Gain:
    """Return how much more likely the texts are under `better` than under `base`; see the module's docstring."""
    sums: list[float] = []
    count = 0
    for mine, theirs in zip(better.texts, base.texts, strict=True):
        pairs = [
            min(MOST, max(-MOST, sum(one - other for one, other in zip(scores, others, strict=False))))
            for scores, others in zip(mine, theirs, strict=True)
        ]
        count += len(pairs)
        sums += [sum(pairs[start : start + BLOCK]) for start in range(0, len(pairs), BLOCK)]
    if len(sums) < 2:
        return Gain(0.0, 0.0)
    per_position = len(sums) / count
    return Gain(fmean(sums) * per_position, stdev(sums) / math.sqrt(len(sums)) * per_position)


def likelihood(target: ReplayTarget, proposer: Proposer, texts: Sequence[Text], max_len: int) -> Likelihood:
    """Score a proposer, made with `sampled=True`, at every position of the texts."""
    scorer = _Scorer(proposer, [text.known for text in texts])
    engine = Engine(target, scorer, max_batch=min(MOST_SLOTS, len(texts)), max_len=max_len, prefix_cache_bytes=0)
    engine.generate([list(text.known.prompt) for text in texts], [text.sampling for text in texts])
    return Likelihood([scorer.scores[text.known.prompt] for text in texts])


@final
class _Scorer(Proposer):
    """A proposer that scores the drafts of another one, and drafts nothing."""

    def __init__(self, inner: Proposer, texts: Sequence[KnownText]) -> None:
        super().__init__(None)
        self.inner = inner
        self.answers: Mapping[tuple[int, ...], tuple[int, ...]] = {text.prompt: text.answer for text in texts}
        self.scores: dict[tuple[int, ...], list[list[float]]] = {text.prompt: [] for text in texts}

    @property
    def spec(self) -> ProposerSpec:
        return self.inner.spec

    def open(self, plan: SessionPlan) -> Session:
        return _ScorerSession(self, self.inner.open(replace(plan, noise=Stream.DRAFT)), plan.device)


@final
class _ScorerSession(Session):
    def __init__(self, scorer: _Scorer, inner: Session, device: torch.device) -> None:
        self.scorer, self.inner, self.device = scorer, inner, device
        self.prompts: dict[int, tuple[int, ...]] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.prompts[slot] = tuple(tokens)
        self.inner.admit(slot, tokens, SamplingParams(temperature=1.0, seed=sampling.seed), features_TF)

    def num_pending(self, slot: int) -> int:
        return self.inner.num_pending(slot)

    def catch_up(self, slots: Sequence[int]) -> None:
        self.inner.catch_up(slots)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        short = [DraftLimit(min(one.num_nodes, DEPTH), min(one.max_depth, DEPTH)) for one in limits]
        draft = self.inner.propose(slots, short)
        for place, (slot, tree) in enumerate(zip(slots, draft.trees, strict=True)):
            scores = self.scorer.scores[self.prompts[slot]]
            rest = self.scorer.answers[self.prompts[slot]][len(scores) :]
            scores.append(_scored(draft.probs_BMV, place, tree.tokens, rest))
        return Draft.empty(len(slots), self.device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        self.inner.observe(commits, features_BMF)

    def release(self, slot: int) -> None:
        self.inner.release(slot)
        del self.prompts[slot]


def _scored(probs_BMV: Tensor | None, place: int, drawn: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return the scores of one draft, down to the first token that is not the text's."""
    scores: list[float] = []
    for row, (drafted, token) in enumerate(zip(drawn, answer, strict=False)):
        assert probs_BMV is not None, "the drafter was made to sample"
        share = float(probs_BMV[place, row, token])
        scores.append(math.log((1 - FLOOR) * share + FLOOR / probs_BMV.shape[-1]))
        if drafted != token:
            break
    return scores
