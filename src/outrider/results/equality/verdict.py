"""The first divergence of an output from plain decoding: a numerical tie, or a violation.

Logits of one text differ in their last bits with the number of rows in the pass, which may flip the order of two
tokens: a *tie*. To tell it from a bug, the target reads the text again in several ways (`replay.py`):

    noise    = the largest difference of a logit between these ways, as the request's processors leave them
    margin   = distance of the worse of the two tokens from the best, in logits; at temperature T > 0 in perturbed
               scores, log p + gumbel, times T
    tie      if 0 < noise <= 32 eps * max |logit|, which is rounding, and one logit moved by c * noise makes the target
               choose either token; without filters: margin <= c * noise

with c = 4: two moved logits change their difference by twice the noise, and replay may show half of it. Tokens after a
tie count as skipped.

Worked example: plain decoding gives 17 with logit 9.131, the method 40 with logit 9.127, the noise is 0.006: the margin
0.004 is below 0.024, a tie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from outrider.noise import Stream, gumbel, position_keys
from outrider.processors.start import start_processors
from outrider.results.equality.replay import DEFAULT_ROWS, replay
from outrider.sampling import SamplingParams, choose, transform
from outrider.target import Target

__all__ = [
    "NOISE_LIMIT_EPS",
    "TIE_FACTOR",
    "Judgement",
    "Verdict",
    "first_difference",
    "judge",
    "judge_logits",
]

TIE_FACTOR = 4.0
NOISE_LIMIT_EPS = 32.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One answer against plain decoding's.

    position       index in the answer of the first token that differs; None if exact
    margin, noise  in logits; None if exact or if one answer merely ended early; the margin also where a filter cut
                   one of the tokens off
    num_compared   tokens that were compared, the differing one included
    num_skipped    tokens of the method's answer behind it, which cannot be compared
    """

    kind: Literal["exact", "tie", "violation"]
    position: int | None = None
    margin: float | None = None
    noise: float | None = None
    num_compared: int = 0
    num_skipped: int = 0


def judge(
    target: Target,
    prompt_tokens: Sequence[int],
    sampling: SamplingParams,
    want_tokens: Sequence[int],
    got_tokens: Sequence[int],
    *,
    num_rows: Sequence[int] = DEFAULT_ROWS,
    num_slots: int = 1,
) -> Verdict:
    """Judge one answer of a coupled run; the target is read again only if it differs.

    Args:
        prompt_tokens: the prompt of both answers.
        want_tokens: plain decoding's answer, with the same sampling.
        got_tokens: the method's answer.
        num_rows: numbers of rows in a pass for which noise is measured, besides one row.
        num_slots: batch size of the passes.
    """
    position = first_difference(want_tokens, got_tokens)
    if position is None:
        return Verdict(kind="exact", num_compared=len(got_tokens))
    counts = {"num_compared": position + 1, "num_skipped": max(0, len(got_tokens) - position - 1)}
    if position == min(len(want_tokens), len(got_tokens)):
        return Verdict(kind="violation", position=position, **counts)
    context = [*prompt_tokens, *want_tokens[:position]]
    logits_RV = replay(target, context, len(prompt_tokens), num_rows, num_slots)
    logits_RV = _processed(logits_RV, target, prompt_tokens, want_tokens[:position], sampling)
    pair = want_tokens[position], got_tokens[position]
    judged = judge_logits(logits_RV, *pair, sampling, len(context), target.spec.dtype)
    kind: Literal["tie", "violation"] = "tie" if judged.is_tie else "violation"
    return Verdict(kind=kind, position=position, margin=judged.margin, noise=judged.noise, **counts)


class Judgement(NamedTuple):
    """Verdict on two tokens at one position: tie or not; `margin` is None where a filter cut one of them off."""

    is_tie: bool
    margin: float | None
    noise: float


def judge_logits(
    logits_RV: Tensor, want: int, got: int, sampling: SamplingParams, position: int, dtype: torch.dtype
) -> Judgement:
    """Judge one position from its logits.

    Args:
        logits_RV: the same logits computed in R ways, the plain one (one row per pass) first.
        want, got: the two tokens.
        position: in the text, prompt included; keys the noise of the sampler.
        dtype: dtype of the weights; it bounds what can be rounding.
    """
    logits_RV = logits_RV.double()
    plain_V = logits_RV[0]
    allowed_V = plain_V.isfinite()  # a mask's -inf is no number that rounding moves
    noise = float((logits_RV - plain_V)[:, allowed_V].abs().max())
    is_rounding = 0 < noise <= NOISE_LIMIT_EPS * torch.finfo(dtype).eps * float(plain_V[allowed_V].abs().max())
    can_flip = all(_could_choose(token, plain_V, TIE_FACTOR * noise, sampling, position) for token in (want, got))
    return Judgement(is_rounding and can_flip, _margin(plain_V, (want, got), sampling, position), noise)


def _processed(
    logits_RV: Tensor, target: Target, prompt: Sequence[int], answer: Sequence[int], sampling: SamplingParams
) -> Tensor:
    """Return the logits as the request's processors leave them behind prompt and answer."""
    spec = target.spec
    state = start_processors(sampling, prompt, target.tokenizer, spec.vocab_size, spec.eos_ids)
    if state is None:
        return logits_RV
    for token in answer:
        state.advance(token)
    return torch.stack([state.transform(logits_V) for logits_V in logits_RV])


def _could_choose(token: int, logits_V: Tensor, slack: float, sampling: SamplingParams, position: int) -> bool:
    """Return whether the sampler takes `token` when its logit is raised, or the chosen token's lowered, by `slack`."""
    chosen = int(_choices(logits_V[None], sampling, position)[0])
    moved_RV = logits_V.repeat(2, 1)
    moved_RV[0, token] += slack
    moved_RV[1, chosen] -= slack
    return chosen == token or token in _choices(moved_RV, sampling, position).tolist()


def _choices(logits_RV: Tensor, sampling: SamplingParams, position: int) -> Tensor:
    return choose(logits_RV, torch.full((len(logits_RV),), position), [sampling] * len(logits_RV))


def _margin(logits_V: Tensor, tokens: tuple[int, int], sampling: SamplingParams, position: int) -> float | None:
    scores_V = logits_V
    if not sampling.greedy:
        keys_12 = position_keys(torch.tensor([sampling.seed]), torch.tensor([position]), Stream.TARGET)
        scores_V = transform(logits_V[None], sampling)[0] + gumbel(keys_12, len(logits_V))[0]
        scores_V = scores_V * sampling.temperature
    margin = max(float(scores_V.max() - scores_V[token]) for token in tokens)
    return margin if math.isfinite(margin) else None


def first_difference(want_tokens: Sequence[int], got_tokens: Sequence[int]) -> int | None:
    """Index of the first token that differs; where one ends and the other goes on, its end; None if they are equal."""
    for index, (want, got) in enumerate(zip(want_tokens, got_tokens, strict=False)):
        if want != got:
            return index
    return None if len(want_tokens) == len(got_tokens) else min(len(want_tokens), len(got_tokens))
