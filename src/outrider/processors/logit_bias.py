"""A number added to the logits of some tokens. Example: {5: -100} all but forbids token 5."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from outrider.processors.base import Processor

__all__ = ["LogitBias"]


@final
class LogitBias(Processor):
    """The biases of one request; they do not depend on the text."""

    def __init__(self, biases: Sequence[tuple[int, float]]) -> None:
        self.biases = biases

    def advance(self, token: int) -> None:
        """Change nothing."""

    def fork(self) -> "LogitBias":
        return self

    def transform(self, logits_V: Tensor) -> Tensor:
        tokens, biases = zip(*self.biases, strict=True)
        logits_V, device = logits_V.clone(), logits_V.device
        logits_V[torch.tensor(tokens, device=device)] += torch.tensor(biases, device=device, dtype=logits_V.dtype)
        return logits_V
