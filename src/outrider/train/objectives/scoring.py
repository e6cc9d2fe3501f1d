"""Loss and guesses at many positions, a slice of the vocabulary's worth of memory at a time.

Logits are the largest tensor of a drafter's training: 3 400 positions by 152 064 tokens are 2 GB. Where a device has
`chunk_limits` for fewer, they are computed for some positions at a time, and once more in the backward pass, so that
one chunk of them exists. `Scorer` scores any positions; `Depths` adds up the drafters that predict from every slot:

    loss = sum over depths of  weight_k * sum over texts of  the text's mean loss at depth k

Worked example: per-position losses 1, 3 of one text and 5 of another sum to mean(1, 3) + 5 = 7 over 2 texts.

Shapes: B rows, L positions, R scored positions, E hidden size, V vocabulary, K columns or depths, F features of the
target's final state.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from outrider.train.batch import Batch
from outrider.train.objective import Outcome, Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.losses import Loss, loss_R, overlap_R

__all__ = ["ChunkLimits", "Depths", "Scorer", "Scores", "TextMeans", "chunk_limits", "mean_by_text"]

Predict = Callable[[Tensor], Tensor]
"""The drafter's logits [R, K] from its states [R, E]."""
Teach = Callable[[slice], Tensor | None]
"""The target's log-probabilities [R, K] at a slice of the scored positions; None where they are not needed."""


class ChunkLimits(NamedTuple):
    """Logits that may exist at a time, and the positions of a chunk where there would be more."""

    logits: int
    positions: int


CHUNK_LIMITS = {"cpu": ChunkLimits(1 << 25, 1024), "cuda": ChunkLimits(1 << 28, 8192)}


def chunk_limits(device: torch.device) -> ChunkLimits:
    """Return what fits the memory of such a device."""
    return CHUNK_LIMITS.get(device.type, CHUNK_LIMITS["cpu"])


class Scores(NamedTuple):
    """The scores of R positions.

    loss_R     with gradient
    guess_R    the drafter's most probable token
    learnt_R   bool: the loss teaches something there
    rank_R     columns more probable than that of the token, -1 where it has none; None while gradients are computed
    overlap_R  sum of min(p, q); None while gradients are computed, and without the target's states
    """

    loss_R: Tensor
    guess_R: Tensor
    learnt_R: Tensor
    rank_R: Tensor | None
    overlap_R: Tensor | None

    def mean_by_text(self, texts_R: Tensor) -> "TextMeans":
        """Average the loss where it teaches something, by text."""
        return mean_by_text(self.loss_R[self.learnt_R], texts_R[self.learnt_R])


class TextMeans(NamedTuple):
    """The sum over texts of each text's mean, and the number of texts."""

    total: Tensor
    num_texts: int


class Scorer(NamedTuple):
    """A loss, the target, and the tokens that can be drafted."""

    kind: Loss
    teacher: Teacher
    columns: Columns

    def score(self, states_RE: Tensor, head_VE: Tensor, tokens_R: Tensor, features_RF: Tensor | None) -> Scores:
        """Score a drafter's final states.

        Args:
            head_VE: the drafter's output head, all rows of it.
            tokens_R: the token to be predicted.
            features_RF: the target's state after its final norm, from which it wrote that token; None without.
        """
        return self.score_by(self.predict_by(head_VE), states_RE, tokens_R, self.teach_by(features_RF))

    def predict_by(self, head_VE: Tensor) -> Predict:
        """Return the product with the rows of an output head that have a column."""
        return lambda states_RE: states_RE @ self.columns.rows(head_VE).T

    def teach_by(self, features_RF: Tensor | None) -> Teach:
        """Return the target's distribution by its final states."""
        if features_RF is None:
            return lambda where: None
        return lambda where: self.columns.teach(self.kind, self.teacher, features_RF[where])

    def score_by(self, predict: Predict, states_RE: Tensor, tokens_R: Tensor, teach: Teach) -> Scores:
        """Score states that `predict` turns into logits, in chunks where there are many."""
        space = chunk_limits(tokens_R.device)
        if len(tokens_R) * self.columns.num_columns <= space.logits:
            return self._score(predict, states_RE, tokens_R, teach, slice(None))
        parts: list[Scores] = []
        for start in range(0, len(tokens_R), space.positions):
            arguments = (predict, states_RE, tokens_R, teach, slice(start, start + space.positions))
            part: Scores = checkpoint(self._score, *arguments, use_reentrant=False, preserve_rng_state=False)
            parts.append(part)
        return Scores(*map(_joined, zip(*parts, strict=True)))

    def _score(self, predict: Predict, states_RE: Tensor, tokens_R: Tensor, teach: Teach, where: slice) -> Scores:
        logits_RK, tokens_R = predict(states_RE[where]), tokens_R[where]
        logits_RK = logits_RK.to(torch.promote_types(logits_RK.dtype, torch.float32))
        teacher_RK, columns_R = teach(where), self.columns.of(tokens_R)
        losses_R = loss_R(self.kind, logits_RK, columns_R, teacher_RK)
        learnt_R = self.columns.learnable(self.kind, tokens_R)
        with torch.no_grad():
            guess_R = self.columns.tokens(logits_RK.argmax(-1))
        if torch.is_grad_enabled():  # ranks and overlaps are figures of evaluations
            return Scores(losses_R, guess_R, learnt_R, None, None)
        right_R1 = logits_RK.gather(1, columns_R.clamp(min=0)[:, None])
        rank_R = torch.where(columns_R >= 0, (logits_RK > right_R1).sum(-1), -1)
        overlaps_R = None if teacher_RK is None else overlap_R(logits_RK, teacher_RK)
        return Scores(losses_R, guess_R, learnt_R, rank_R, overlaps_R)


def _joined(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else torch.cat(parts)


@final
class Depths:
    """The scores of a drafter that predicts from every slot of a batch, depth by depth.

    Args:
        weights: weight of each depth in the loss.

    Attributes:
        rows_KBL: bool, the slots that are scored: the target wrote every token from behind the root to the predicted.
        anchors_BL: bool, the slots whose root the target wrote; these count for the acceptance.
    """

    def __init__(self, batch: Batch, scorer: Scorer, weights: Sequence[float]) -> None:
        self.rows_KBL = batch.written_ahead(len(weights), 2)
        self.anchors_BL = batch.shifted(batch.learn_BL, 1)
        self._batch, self._scorer, self._weights = batch, scorer, weights
        self._texts_BL = batch.text_numbers()
        self._loss = torch.zeros((), device=batch.tokens_BL.device)
        self._agreed: list[Tensor] = []
        self._overlap: list[Tensor] = []

    def add(self, predict: Predict, states_RE: Tensor, teach: Teach) -> Scores:
        """Score the next depth, at its rows."""
        depth = len(self._agreed)
        rows_BL = self.rows_KBL[depth]
        tokens_R = self._batch.shifted(self._batch.tokens_BL, depth + 2)[rows_BL]
        scores = self._scorer.score_by(predict, states_RE, tokens_R, teach)
        self._loss = self._loss + self._weights[depth] * scores.mean_by_text(self._texts_BL[rows_BL]).total
        self._agreed.append(self._at_anchors(rows_BL, scores.guess_R == tokens_R))
        if scores.overlap_R is not None:
            self._overlap.append(self._at_anchors(rows_BL, scores.overlap_R))
        return scores

    def outcome(self) -> Outcome:
        """Return what the loop reads; every slot of the batch is a column."""
        num_texts = torch.unique(self._texts_BL[self.rows_KBL[0]]).numel()
        overlap_KR = torch.stack(self._overlap) if self._overlap else None
        valid_KR = (self.rows_KBL & self.anchors_BL).flatten(1)
        return Outcome(self._loss, num_texts, torch.stack(self._agreed), valid_KR, overlap_KR)

    def _at_anchors(self, rows_BL: Tensor, values_R: Tensor) -> Tensor:
        """Return the values of some slots as one value a slot, 0 where it is no anchor or has no such depth."""
        values_BL = values_R.new_zeros(rows_BL.shape)
        values_BL[rows_BL] = values_R
        return (values_BL * self.anchors_BL).flatten()


def mean_by_text(losses_R: Tensor, texts_R: Tensor, weights_R: Tensor | None = None) -> TextMeans:
    """Group losses by text number, 0 or above; with weights above 0, the means are weighted."""
    num_numbers = int(texts_R.max()) + 1 if len(texts_R) else 0
    if weights_R is None:
        weights_R = torch.ones_like(losses_R)
    weights_R = weights_R.to(losses_R.dtype)
    sums = losses_R.new_zeros(num_numbers).index_add(0, texts_R, losses_R * weights_R)
    totals = losses_R.new_zeros(num_numbers).index_add(0, texts_R, weights_R)
    has_any = totals > 0  # numbers without a position add 0
    return TextMeans((sums[has_any] / totals[has_any]).sum(), int(has_any.sum()))
