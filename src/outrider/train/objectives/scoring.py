"""Loss and guesses at many positions, a slice of the vocabulary's worth of memory at a time.

Logits are the largest tensor of a draft model's training: 3 400 positions by 152 064 tokens are 2 GB. They are made
for `CHUNK` positions at a time and, if there is more than one such chunk, again in the backward pass, so that only one
chunk of them exists.

Worked example: per-position losses 1, 3 of one text and 5 of another sum to mean(1, 3) + 5 = 7 over 2 texts.

Shapes: R positions, E hidden size, V vocabulary, F features of the target's final state.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from outrider.train.losses import Loss, loss_R, overlap_R
from outrider.train.objective import Teacher

__all__ = ["Scores", "TextMeans", "mean_by_text", "score"]

CHUNK = 1024


class Scores(NamedTuple):
    """Per position: loss with gradient, most probable token, and sum of min(p, q) if the target's states are given."""

    loss_R: Tensor
    guess_R: Tensor
    overlap_R: Tensor | None


class TextMeans(NamedTuple):
    """The sum over texts of each text's mean, and how many texts there are."""

    total: Tensor
    num_texts: int


def score(
    kind: Loss, states_RE: Tensor, head_VE: Tensor, tokens_R: Tensor, teacher: Teacher, features_RF: Tensor | None
) -> Scores:
    """Score the drafter's final states.

    Args:
        tokens_R: the token to be predicted.
        features_RF: the target's state after its final norm, from which it wrote that token; None without.
    """
    parts: list[Scores] = []
    for start in range(0, max(1, len(tokens_R)), CHUNK):
        where = slice(start, start + CHUNK)
        features = None if features_RF is None else features_RF[where]
        arguments = (kind, states_RE[where], head_VE, tokens_R[where], teacher, features)
        if len(tokens_R) <= CHUNK:
            return _score(*arguments)
        part: Scores = checkpoint(_score, *arguments, use_reentrant=False, preserve_rng_state=False)
        parts.append(part)
    overlaps = [part.overlap_R for part in parts if part.overlap_R is not None]
    return Scores(
        torch.cat([part.loss_R for part in parts]),
        torch.cat([part.guess_R for part in parts]),
        torch.cat(overlaps) if overlaps else None,
    )


def _score(
    kind: Loss, states_RE: Tensor, head_VE: Tensor, tokens_R: Tensor, teacher: Teacher, features_RF: Tensor | None
) -> Scores:
    logits_RV = states_RE @ head_VE.T
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    log_p_RV = None if features_RF is None else teacher.log_probs(features_RF)
    losses_R = loss_R(kind, logits_RV, tokens_R, log_p_RV)
    with torch.no_grad():
        overlaps_R = None if log_p_RV is None else overlap_R(logits_RV, log_p_RV)
        return Scores(losses_R, logits_RV.argmax(-1), overlaps_R)


def mean_by_text(losses_R: Tensor, texts_R: Tensor) -> TextMeans:
    """Group losses by text number, 0 or above."""
    num_numbers = int(texts_R.max()) + 1 if len(texts_R) else 0
    sums = losses_R.new_zeros(num_numbers).index_add(0, texts_R, losses_R)
    counts = torch.bincount(texts_R, minlength=num_numbers)
    return TextMeans((sums / counts.clamp(min=1)).sum(), int((counts > 0).sum()))
