"""Two targets of one vocabulary, compared by their logits at the same positions of the same text.

With p the reference's distribution at a position, q the candidate's, and x the token that the text has there:

    agreement     share of positions with argmax p = argmax q
    KL            mean of sum_v p(v) (log p(v) - log q(v)), in nats
    perplexity    exp of the mean of -log p(x), and the same of q

A passage is read in chunks: every chunk is a chain of rows behind the cache, so memory holds the logits of one chunk
per target. All sums are in fp64.

Example: for the logits [0, 0] and [log 3, 0] and the token 0, KL is -log(3/4)/2 - log(1/4)/2 - log 2 = 0.144 nats, and
the perplexities are 2 and 4/3.

Shapes: R rows, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.errors import CapacityError, ConfigError, RunError
from outrider.loop.free_memory import free_bytes
from outrider.records.progress import Listener, Progress, unheard
from outrider.target import Target, TargetSession

__all__ = ["Passage", "Quality", "Sums", "check_vocabularies", "compare", "sums_of"]

ROWS = 64
"""Rows of a chunk."""


class Passage(NamedTuple):
    """Tokens of a text, of which those from place `start` on, at least 1, are predicted from all before them."""

    tokens: Sequence[int]
    start: int = 1

    @property
    def num_positions(self) -> int:
        """Number of predicted tokens."""
        return len(self.tokens) - self.start


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of a candidate against a reference.

    num_positions          number of predicted tokens
    agreement              share of them with the same most probable token, 0 to 1
    kl                     mean KL(reference || candidate), nats
    reference_perplexity   perplexity of the text under the reference
    perplexity             perplexity of the text under the candidate
    """

    num_positions: int
    agreement: float
    kl: float
    reference_perplexity: float
    perplexity: float


class Sums(NamedTuple):
    """Sums over positions, which add up over chunks: log-likelihoods are natural logarithms."""

    num_positions: int = 0
    num_equal: int = 0
    kl: float = 0.0
    reference_log_p: float = 0.0
    log_p: float = 0.0

    def plus(self, other: "Sums") -> "Sums":
        return Sums(
            num_positions=self.num_positions + other.num_positions,
            num_equal=self.num_equal + other.num_equal,
            kl=self.kl + other.kl,
            reference_log_p=self.reference_log_p + other.reference_log_p,
            log_p=self.log_p + other.log_p,
        )

    @property
    def quality(self) -> Quality:
        """The figures; needs at least one position."""
        count = self.num_positions
        return Quality(
            num_positions=count,
            agreement=self.num_equal / count,
            kl=self.kl / count,
            reference_perplexity=_exp(-self.reference_log_p / count),
            perplexity=_exp(-self.log_p / count),
        )


def sums_of(reference_RV: Tensor, candidate_RV: Tensor, tokens_R: Tensor) -> Sums:
    """Return the sums of some rows.

    Args:
        reference_RV: raw logits of the reference.
        candidate_RV: raw logits of the candidate at the same rows.
        tokens_R: the token that follows each row.
    """
    p_RV, q_RV = (logits_RV.double().log_softmax(-1) for logits_RV in (reference_RV, candidate_RV))
    # a token with p = 0 adds nothing, though its logarithm is infinite
    terms_RV = torch.where(p_RV == -math.inf, 0.0, p_RV.exp() * (p_RV - q_RV))
    return Sums(
        num_positions=len(tokens_R),
        num_equal=int((reference_RV.argmax(-1) == candidate_RV.argmax(-1)).sum()),
        kl=float(terms_RV.sum()),
        reference_log_p=float(p_RV.gather(1, tokens_R[:, None]).sum()),
        log_p=float(q_RV.gather(1, tokens_R[:, None]).sum()),
    )


def compare(
    reference: Target,
    candidate: Target,
    passages: Sequence[Passage],
    *,
    rows: int = ROWS,
    listen: Listener = unheard,
) -> Quality:
    """Return the figures of a candidate over all passages.

    Args:
        rows: rows of a chunk: more need more memory.
        listen: told of the positions that are done.

    Raises:
        ConfigError: for targets of two vocabularies, and passages without a position or longer than a target's context.
        CapacityError: if the two caches and the logits of a chunk do not fit in memory.
        RunError: if a target's logits are not numbers.
    """
    check_vocabularies(reference, candidate)
    total = _check_passages(passages, (reference, candidate))
    readers = [
        _Reader(target, max(len(passage.tokens) for passage in passages), rows) for target in (reference, candidate)
    ]
    sums = Sums()
    for passage in passages:
        for reader in readers:
            reader.begin(passage.tokens[: passage.start - 1])
        for first in range(passage.start, len(passage.tokens), rows):
            last = min(first + rows, len(passage.tokens))
            reference_RV, candidate_RV = (reader.read(passage.tokens[first - 1 : last - 1]) for reader in readers)
            tokens_R = torch.tensor(passage.tokens[first:last], device=reference_RV.device)
            sums = sums.plus(sums_of(reference_RV, candidate_RV.to(reference_RV.device), tokens_R))
            listen(Progress(sums.num_positions, total, f"{candidate.spec.weights} against {reference.spec.weights}"))
    if math.isnan(sums.reference_log_p + sums.log_p):
        raise RunError(f"{reference.spec.name} or {candidate.spec.name} gives logits that are NaN; use another dtype")
    return sums.quality


def check_vocabularies(reference: Target, candidate: Target) -> None:
    """Refuse targets whose tokens differ.

    Raises:
        ConfigError: naming both, and the first token that differs.
    """
    one, two = reference.spec, candidate.spec
    remedy = "give a candidate with the target's tokenizer"
    if one.vocab_size != two.vocab_size:
        raise ConfigError(f"{two.name} has {two.vocab_size} tokens and {one.name} has {one.vocab_size}; {remedy}")
    if reference.tokenizer is None or candidate.tokenizer is None:
        return
    tokens, others = reference.tokenizer.get_vocab(), candidate.tokenizer.get_vocab()
    differing = [(number, token) for token, number in tokens.items() if others.get(token) != number]
    if differing:
        number, token = min(differing)
        raise ConfigError(f"token {number} of {one.name} is {token!r}, and not of {two.name}; {remedy}")


@final
class _Reader:
    """A session that reads one passage after another in slot 0."""

    def __init__(self, target: Target, longest: int, rows: int) -> None:
        plan = target.plan(1, longest, rows)
        # logits, and their fp64 copies
        needed, free = plan.num_bytes + rows * target.spec.vocab_size * 40, free_bytes(target.spec.device)
        if needed > free:
            raise CapacityError(
                f"reading {longest} tokens with {target.spec.name} needs {needed / 1e9:.1f} GB and"
                f" {free / 1e9:.1f} GB are free; give shorter texts"
            )
        self._target = target
        self._session: TargetSession = target.open(plan)

    def begin(self, tokens: Sequence[int]) -> None:
        """Read the tokens before the first row of a passage."""
        self._session.cache.reset(0)
        with self._target.decoding_threads():
            self._session.prefill([0], [list(tokens)])

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Return logits [R, V] at the next tokens, valid until the next call."""
        draft = Draft.of_chains([list(tokens[1:])], self._target.spec.device)
        with self._target.decoding_threads():
            logits_BMV = self._session.forward([0], [tokens[0]], draft).logits_BMV
        self._session.cache.extend([0], [len(tokens)])
        return logits_BMV[0][: len(tokens)]


def _check_passages(passages: Sequence[Passage], targets: Sequence[Target]) -> int:
    """Return the number of positions of all passages."""
    if not passages or any(passage.start < 1 or passage.num_positions < 1 for passage in passages):
        raise ConfigError("there is a text without a token to predict; give texts of at least two tokens")
    longest = max(len(passage.tokens) for passage in passages)
    for spec in (target.spec for target in targets):
        if longest > spec.max_positions:
            raise ConfigError(
                f"a text has {longest} tokens and {spec.name} has a context of {spec.max_positions}; give shorter texts"
            )
    return sum(passage.num_positions for passage in passages)


def _exp(value: float) -> float:
    """Return e to the power of a value; infinity where that is too large."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
