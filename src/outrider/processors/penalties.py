"""Penalties for tokens that were written before.

With c(v) the count of token v in the answer, and s(v) true if it is in the prompt or the answer,

    repetition   logit(v) <- logit(v) / r if positive, logit(v) * r otherwise, where s(v)   (Keskar et al., 1909.05858)
    frequency    logit(v) <- logit(v) - f * c(v)
    presence     logit(v) <- logit(v) - p where c(v) > 0

in this order, as in vLLM. Example: r = 2, f = 0.5, p = 1; a token written twice falls from 4 to 2, then 1, then 0.

Shapes: V vocabulary, K distinct tokens.
"""

from typing import final

import torch
from torch import Tensor

from outrider.params import SamplingParams
from outrider.processors.base import Processor

__all__ = ["Penalties"]


@final
class Penalties(Processor):
    """The three penalties of one request."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: frozenset[int],
        counts: dict[int, int] | None = None,
        prompt_K: Tensor | None = None,
    ) -> None:
        self.params = params
        self.prompt = prompt
        self.counts = {} if counts is None else counts
        self._prompt_K = torch.tensor(sorted(prompt), dtype=torch.int64) if prompt_K is None else prompt_K

    def advance(self, token: int) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1

    def fork(self) -> "Penalties":
        return Penalties(self.params, self.prompt, dict(self.counts), self._prompt_K)

    def transform(self, logits_V: Tensor) -> Tensor:
        logits_V, device, params = logits_V.clone(), logits_V.device, self.params
        if params.repetition_penalty != 1:
            self._prompt_K = self._prompt_K.to(device)
            more = [token for token in self.counts if token not in self.prompt]
            seen_K = torch.cat([self._prompt_K, torch.tensor(more, dtype=torch.int64, device=device)])
            seen_logits_K = logits_V[seen_K]
            factor = params.repetition_penalty
            logits_V[seen_K] = torch.where(seen_logits_K > 0, seen_logits_K / factor, seen_logits_K * factor)
        if self.counts and (params.frequency_penalty or params.presence_penalty):
            written_K = torch.tensor(list(self.counts), device=device)
            counts_K = torch.tensor(list(self.counts.values()), device=device, dtype=logits_V.dtype)
            logits_V[written_K] = logits_V[written_K] - params.frequency_penalty * counts_K - params.presence_penalty
        return logits_V
