"""The seam of processors: a change of one row of logits that depends on the tokens before it.

A processor is started from a prompt and advanced by every token behind it. It changes raw logits, before temperature
and filters. The engine holds its state behind the committed tokens; a verifier forks that state and advances the fork
along the path that it walks (`path.py`), so that a rejected branch leaves no trace.

    text       "the cat"        frequency_penalty 0.5: the answer's tokens so far
    row root   logits, "cat" - 0.5
    row "sat"  logits, "cat" - 0.5, "sat" - 0.5       the same processor, forked and advanced by "sat"

To add one, write a final `Processor` and start it in `start.py`.

Shapes: V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from outrider.sampling import has_law

__all__ = ["Processor", "ProcessorState"]


class Processor(ABC):
    """One setting of a request that changes its logits, with its state behind some tokens."""

    masks: ClassVar[bool] = False
    """True if it forbids tokens. A mask that would leave no token at a row is not applied there."""

    @abstractmethod
    def advance(self, token: int) -> None:
        """Take in the next token of the text."""

    @abstractmethod
    def fork(self) -> "Processor":
        """Return a copy with a state of its own."""

    @abstractmethod
    def transform(self, logits_V: Tensor) -> Tensor:
        """Return the changed logits, at the tensor's own precision; the argument keeps its values."""

    @property
    def is_idle(self) -> bool:
        """True if it changes no logits from here on."""
        return False

    def forced(self, most: int) -> list[int]:
        """Return at most so many tokens that the text very likely goes on with, since the form leaves no choice."""
        return []

    def failure(self) -> str | None:
        """Return what makes it impossible to go on, or None."""
        return None


@final
class ProcessorState(Processor):
    """The processors of one request, in the order in which they are applied."""

    def __init__(self, processors: Sequence[Processor]) -> None:
        self.processors = list(processors)

    def advance(self, token: int) -> None:
        for one in self.processors:
            one.advance(token)

    def fork(self) -> "ProcessorState":
        return ProcessorState([one.fork() for one in self.processors])

    def transform(self, logits_V: Tensor) -> Tensor:
        """Return the changed logits, at least float32; all -inf where a processor cannot go on."""
        logits_V = logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))
        if not has_law(logits_V[None]).item():  # a mask must not hide that the target's numbers are not finite
            return logits_V
        for one in self.processors:
            changed_V = one.transform(logits_V)
            if not one.masks or has_law(changed_V[None]).item():
                logits_V = changed_V
            elif one.failure() is not None:
                return torch.full_like(logits_V, -torch.inf)
        return logits_V

    @property
    def is_idle(self) -> bool:
        return all(one.is_idle for one in self.processors)

    def forced(self, most: int) -> list[int]:
        return next((tokens for one in self.processors if (tokens := one.forced(most))), []) if most > 0 else []

    def failure(self) -> str | None:
        return next((said for one in self.processors if (said := one.failure()) is not None), None)
