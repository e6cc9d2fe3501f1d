"""Tokens that may not come next: the last token of a bad word, and the ends of a text that is too short.

A bad word of several tokens is forbidden at its last one, where the answer ends with the others (vLLM; `transformers`
looks at the prompt too). Example: the word [3, 4] forbids 4 after 3.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from outrider.processors.base import Processor

__all__ = ["BadWords", "MinTokens"]


def _without(logits_V: Tensor, tokens: Sequence[int]) -> Tensor:
    if not tokens:
        return logits_V
    return logits_V.index_fill(0, torch.tensor(tokens, device=logits_V.device), -torch.inf)


@final
class BadWords(Processor):
    """The bad words of one request, as tokens, and the end of its answer."""

    masks: ClassVar[bool] = True

    def __init__(self, words: Sequence[tuple[int, ...]], end: tuple[int, ...] = ()) -> None:
        self.words = words
        self.end = end
        self.most = max(len(word) for word in words) - 1

    def advance(self, token: int) -> None:
        self.end = (*self.end, token)[-self.most :] if self.most else ()

    def fork(self) -> "BadWords":
        return BadWords(self.words, self.end)

    def transform(self, logits_V: Tensor) -> Tensor:
        completed = [word[-1] for word in self.words if self.end[len(self.end) - len(word) + 1 :] == word[:-1]]
        return _without(logits_V, completed)


@final
class MinTokens(Processor):
    """A ban of `ends` for the first tokens of an answer."""

    masks: ClassVar[bool] = True

    def __init__(self, num_left: int, ends: Sequence[int]) -> None:
        self.num_left = num_left
        self.ends = ends

    def advance(self, token: int) -> None:
        self.num_left -= 1

    def fork(self) -> "MinTokens":
        return MinTokens(self.num_left, self.ends)

    @property
    def is_idle(self) -> bool:
        return self.num_left <= 0

    def transform(self, logits_V: Tensor) -> Tensor:
        return _without(logits_V, self.ends) if self.num_left > 0 else logits_V
