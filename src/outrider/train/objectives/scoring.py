"""Loss and guesses at many positions, a slice of the vocabulary's worth of memory at a time.

Logits are the largest tensor of a draft model's training: 3 400 positions by 152 064 tokens are 2 GB. More of them than
a device has `chunk_limits` for are made for some positions at a time, and again in the backward pass, so that only one
chunk of them exists.

Worked example: per-position losses 1, 3 of one text and 5 of another sum to mean(1, 3) + 5 = 7 over 2 texts.

Shapes: R positions, E hidden size, V vocabulary, K columns, F features of the target's final state.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from outrider.train.objective import Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.losses import Loss, loss_R, overlap_R

__all__ = ["ChunkLimits", "Scorer", "Scores", "TextMeans", "chunk_limits", "mean_by_text"]


class ChunkLimits(NamedTuple):
    """What may exist at a time: logits, and positions of a chunk where there would be more logits than that."""

    logits: int
    positions: int


CHUNK_LIMITS = {"cpu": ChunkLimits(1 << 25, 1024), "cuda": ChunkLimits(1 << 28, 8192)}


def chunk_limits(device: torch.device) -> ChunkLimits:
    """What fits the memory of such a device."""
    return CHUNK_LIMITS.get(device.type, CHUNK_LIMITS["cpu"])


class Scores(NamedTuple):
    """Per position: loss with gradient, most probable token, whether the loss teaches something there, and the overlap
    sum of min(p, q), which is computed without gradients only."""

    loss_R: Tensor
    guess_R: Tensor
    learnt_R: Tensor
    overlap_R: Tensor | None

    def mean_by_text(self, texts_R: Tensor) -> "TextMeans":
        """The loss where it teaches something, by text."""
        return mean_by_text(self.loss_R[self.learnt_R], texts_R[self.learnt_R])


class TextMeans(NamedTuple):
    """The sum over texts of each text's mean, and how many texts there are."""

    total: Tensor
    num_texts: int


class Scorer(NamedTuple):
    """What positions are scored by: a loss, the target, and the tokens that can be drafted."""

    kind: Loss
    teacher: Teacher
    columns: Columns

    def score(self, states_RE: Tensor, head_VE: Tensor, tokens_R: Tensor, features_RF: Tensor | None) -> Scores:
        """Score the drafter's final states.

        Args:
            head_VE: the drafter's output head, all rows of it.
            tokens_R: the token to be predicted.
            features_RF: the target's state after its final norm, from which it wrote that token; None without.
        """
        space = chunk_limits(tokens_R.device)
        if len(tokens_R) * self.columns.num_columns <= space.logits:
            return self._score(states_RE, head_VE, tokens_R, features_RF)
        parts: list[Scores] = []
        for start in range(0, len(tokens_R), space.positions):
            where = slice(start, start + space.positions)
            features = None if features_RF is None else features_RF[where]
            arguments = (states_RE[where], head_VE, tokens_R[where], features)
            part: Scores = checkpoint(self._score, *arguments, use_reentrant=False, preserve_rng_state=False)
            parts.append(part)
        overlaps = [part.overlap_R for part in parts if part.overlap_R is not None]
        return Scores(
            torch.cat([part.loss_R for part in parts]),
            torch.cat([part.guess_R for part in parts]),
            torch.cat([part.learnt_R for part in parts]),
            torch.cat(overlaps) if overlaps else None,
        )

    def _score(self, states_RE: Tensor, head_VE: Tensor, tokens_R: Tensor, features_RF: Tensor | None) -> Scores:
        columns = self.columns
        logits_RK = states_RE @ columns.rows(head_VE).T
        logits_RK = logits_RK.to(torch.promote_types(logits_RK.dtype, torch.float32))
        teacher_RK = None if features_RF is None else columns.teach(self.kind, self.teacher, features_RF)
        losses_R = loss_R(self.kind, logits_RK, columns.of(tokens_R), teacher_RK)
        with torch.no_grad():
            guess_R = columns.tokens(logits_RK.argmax(-1))
        overlaps_R = None if teacher_RK is None or torch.is_grad_enabled() else overlap_R(logits_RK, teacher_RK)
        return Scores(losses_R, guess_R, columns.learnable(self.kind, tokens_R), overlaps_R)


def mean_by_text(losses_R: Tensor, texts_R: Tensor) -> TextMeans:
    """Group losses by text number, 0 or above."""
    num_numbers = int(texts_R.max()) + 1 if len(texts_R) else 0
    sums = losses_R.new_zeros(num_numbers).index_add(0, texts_R, losses_R)
    counts = torch.bincount(texts_R, minlength=num_numbers)
    return TextMeans((sums / counts.clamp(min=1)).sum(), int((counts > 0).sum()))
