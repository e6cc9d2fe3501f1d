"""Structured output: only tokens that keep the answer inside a form (JSON schema, expression, choice, grammar).

The form is compiled by llguidance, whose matcher reads the answer token by token and gives a mask over the vocabulary.
Once the form is complete and cannot go on, only an end-of-text token is allowed.

Where the form leaves one continuation, `forced` gives its usual tokens: a key with its quotes, a bracket. Other tokens
may spell the same characters, so they are drafts, which the target verifies like any other.

    schema {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    answer "{"      forced: the tokens of '"age":'

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from outrider.processors.base import Processor
from outrider.processors.forms import words_of

__all__ = ["Grammar"]


@final
class Grammar(Processor):
    """The state of a form behind the tokens of an answer.

    Args:
        matcher: an `LLMatcher` in that state.
        eos_ids: the end-of-text tokens of the target.
        ended: True behind an end-of-text token.
    """

    masks: ClassVar[bool] = True

    def __init__(self, matcher: Any, vocab_size: int, eos_ids: Sequence[int], ended: bool = False) -> None:
        self.matcher = matcher
        self.vocab_size = vocab_size
        self.eos_ids = eos_ids
        self.ended = ended

    def advance(self, token: int) -> None:
        if not self.ended and token in self.eos_ids and self.matcher.is_accepting():
            self.ended = True
        elif not self.ended:
            self.matcher.consume_token(token)

    def fork(self) -> "Grammar":
        return Grammar(self.matcher.deep_copy(), self.vocab_size, self.eos_ids, self.ended)

    def transform(self, logits_V: Tensor) -> Tensor:
        allowed_V = self._allowed()
        if logits_V.device.type == "cpu":
            return logits_V.masked_fill(torch.from_numpy(~allowed_V), -torch.inf)
        return logits_V.masked_fill(torch.from_numpy(~allowed_V).to(logits_V.device), -torch.inf)

    def _allowed(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Return which tokens may come next, bool [V]."""
        if self.ended or (self.matcher.is_stopped() and not self.matcher.is_error()):
            allowed_V = np.zeros(self.vocab_size, dtype=np.bool_)
        else:
            words = np.zeros(-(-self.vocab_size // 32), dtype=np.uint32)
            self.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            bits = np.unpackbits(words.view(np.uint8), count=self.vocab_size, bitorder="little")
            allowed_V = bits.astype(np.bool_)
            if self.matcher.is_error():
                return np.zeros_like(allowed_V)
            if not self.matcher.is_accepting():
                return allowed_V
        allowed_V[list(self.eos_ids)] = True
        return allowed_V

    def forced(self, most: int) -> list[int]:
        return [] if self.ended or self.matcher.is_stopped() else list(self.matcher.compute_ff_tokens()[:most])

    def failure(self) -> str | None:
        self._allowed()  # an error may show up only here
        return words_of(self.matcher) if self.matcher.is_error() else None
