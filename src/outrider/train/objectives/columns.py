"""The tokens that a drafter learns to draft.

A drafter seldom needs the whole vocabulary: the tokens that the target writes most often make up nearly all of its
text, and the logits of the others are most of the cost of training and drafting (FR-Spec, arXiv 2502.14856). So a loss
may use some columns of the output head. A token outside of them cannot be drafted, and its row is not learnt from.

Worked example: columns for the tokens 2, 5, 7: token 5 has column 1, token 3 has none.

Shapes: V vocabulary, K columns, R rows, E hidden size.
"""

from typing import Self, final

import torch
from torch import Tensor

from outrider.data.texts import Corpus
from outrider.errors import ConfigError
from outrider.formats.token_ranking import special_ids
from outrider.target import Target
from outrider.train.objective import Teacher
from outrider.train.objectives.losses import Loss

__all__ = ["Columns", "choose_columns"]


def choose_columns(target: Target, corpus: Corpus, num_columns: int) -> Tensor:
    """Return the tokens with a column, int64 [K], ascending: special tokens, then those the target wrote most often.

    Equal counts are decided by the lower id.

    Raises:
        ConfigError: if the special tokens alone are more.
    """
    vocab_size = target.spec.vocab_size
    if num_columns >= vocab_size:
        return torch.arange(vocab_size)
    special = special_ids(target)
    if num_columns < len(special):
        raise ConfigError(f"draft_vocab={num_columns} is less than the {len(special)} special tokens; raise it")
    weight_V = corpus.counts_V.to("cpu", torch.float64, copy=True)
    weight_V[special] = torch.inf
    best_K = weight_V.sort(descending=True, stable=True).indices[:num_columns]
    return best_K.sort().values


@final
class Columns:
    """Some tokens of a vocabulary, or all of them.

    Args:
        ids_K: target ids, ascending; None for all.
    """

    def __init__(self, ids_K: Tensor | None, vocab_size: int, device: torch.device | str) -> None:
        self.ids_K = None if ids_K is None or len(ids_K) == vocab_size else ids_K.to(device)
        self.num_columns = vocab_size if self.ids_K is None else len(self.ids_K)
        self._column_V = torch.arange(vocab_size, device=device)
        if self.ids_K is not None:
            self._column_V = torch.full((vocab_size,), -1, device=device)
            self._column_V[self.ids_K] = torch.arange(self.num_columns, device=device)

    @classmethod
    def most_frequent(cls, teacher: Teacher, corpus: Corpus, count: int) -> Self:
        """Choose this many columns; 0 for all.

        Raises:
            ConfigError: if the target has fewer tokens, or the special tokens alone are more.
        """
        target = teacher.target
        if count > target.spec.vocab_size:
            raise ConfigError(f"draft_vocab={count} exceeds the target's {target.spec.vocab_size} tokens; leave it out")
        ids_K = choose_columns(target, corpus, count) if count else None
        return cls(ids_K, target.spec.vocab_size, teacher.head_VE.device)

    def of(self, tokens: Tensor) -> Tensor:
        """Return the column of every token, -1 where it has none."""
        return self._column_V[tokens]

    def tokens(self, columns: Tensor) -> Tensor:
        """Return the token of every column."""
        return columns if self.ids_K is None else self.ids_K[columns]

    def rows(self, head_VE: Tensor) -> Tensor:
        """Return the rows [K, E] of an output head."""
        return head_VE if self.ids_K is None else head_VE[self.ids_K]

    def learnable(self, kind: Loss, tokens_R: Tensor) -> Tensor:
        """Return bool [R]: this loss teaches something there; tv and log_alpha do for tokens without a column too."""
        return (self.of(tokens_R) >= 0) | (kind in ("tv", "log_alpha"))

    def teach(self, kind: Loss, teacher: Teacher, states_RE: Tensor) -> Tensor | None:
        """Return log p [R, K] from the target's final states, or None where it is not needed.

        While gradients are computed only what the loss needs counts: "ce" nothing, "kl" the columns among themselves.
        Otherwise the overlap is wanted too, for which p is normalised over the whole vocabulary.
        """
        learning = torch.is_grad_enabled()
        if learning and kind == "ce":
            return None
        return teacher.log_probs(states_RE, self.ids_K, among_columns=learning and kind == "kl")
