"""Chains grown token by token: what every drafter that writes one token after another shares.

A drafter gives logits, one row per slot that is still growing; `Chains` chooses the tokens, remembers the distributions
they were drawn from where the verifier needs them, and hands out the finished draft. A chain is greedy, or sampled with
the request's own temperature and filters: from the target's noise under the coupled rule, where equal noise makes
agreement likelier, and from noise of its own under the ratio tests, which need the probabilities and an independent
draw (numbered by depth, so that no later step repeats it).

A drafter with a reduced vocabulary passes `ids_K`, the target ids of its columns. Everywhere else it has probability 0.

Worked example: columns 0, 1 stand for target tokens 7 and 3; logits [0.1, 2.0] choose token 3.

Shapes: B growing slots, K columns, V the target's vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.noise import Stream
from outrider.proposer import SessionPlan
from outrider.sampling import Sampling, choose, distribution, largest

__all__ = ["Chains", "widen"]


def widen(logits_BK: Tensor, ids_K: Tensor | None, vocab_size: int) -> Tensor:
    """Logits over the target's vocabulary; minus infinity where the drafter has no column."""
    if ids_K is None:
        return logits_BK
    logits_BV = logits_BK.new_full((len(logits_BK), vocab_size), -torch.inf)
    logits_BV[:, ids_K] = logits_BK
    return logits_BV


@final
class Chains:
    """The chains of one proposal, by slot.

    Args:
        sampled: draw the tokens with each slot's sampling settings instead of taking the most probable.
        vocab_size: the target's; needed with `ids_K`.
    """

    def __init__(
        self,
        plan: SessionPlan,
        slots: Sequence[int],
        samplings: Mapping[int, Sampling],
        *,
        sampled: bool,
        vocab_size: int,
        ids_K: Tensor | None = None,
    ) -> None:
        self.plan = plan
        self.tokens: dict[int, list[int]] = {slot: [] for slot in slots}
        self._samplings = samplings
        self._sampled = sampled
        self._vocab_size = vocab_size
        self._ids_K = ids_K
        self._probs: dict[tuple[int, int], Tensor] = {}

    def grow(self, slots: Sequence[int], logits_BK: Tensor, first_positions: Sequence[int]) -> list[int]:
        """Append one token to the chain of each of `slots`, and give these tokens.

        Args:
            first_positions: of each slot, the text index of the first token of its chain (that of the root plus 1).
        """
        chosen = self._choose(slots, logits_BK, first_positions)
        for slot, token in zip(slots, chosen, strict=True):
            self.tokens[slot].append(token)
        return chosen

    def _choose(self, slots: Sequence[int], logits_BK: Tensor, first_positions: Sequence[int]) -> list[int]:
        if not self._sampled:
            best_B = largest(logits_BK)
            return (best_B if self._ids_K is None else self._ids_K[best_B]).tolist()
        logits_BV = widen(logits_BK, self._ids_K, self._vocab_size)
        depths = [len(self.tokens[slot]) for slot in slots]
        samplings = [self._samplings[slot] for slot in slots]
        if self.plan.noise is Stream.DRAFT:
            for slot, depth, sampling, logits_V in zip(slots, depths, samplings, logits_BV, strict=True):
                self._probs[slot, depth] = distribution(logits_V[None], sampling)[0]
        positions_B = torch.tensor([f + d for f, d in zip(first_positions, depths, strict=True)])
        draw = (
            depths[0] if self.plan.noise is Stream.DRAFT else 0
        )  # no step may reuse what an earlier one was judged by
        assert len(set(depths)) == 1, "chains grow level by level"
        return choose(logits_BV, positions_B.to(logits_BV.device), samplings, self.plan.noise, draw).tolist()

    def draft(self) -> Draft:
        """The chains as one draft, in the order of the slots."""
        return Draft.of_chains(list(self.tokens.values()), self.plan.device, self._stacked())

    def _stacked(self) -> Tensor | None:
        if not self._probs:
            return None
        sample_V = next(iter(self._probs.values()))
        rows = 1 + max(len(chain) for chain in self.tokens.values())
        probs_BMV = sample_V.new_zeros(len(self.tokens), rows, sample_V.shape[0])
        places = {slot: place for place, slot in enumerate(self.tokens)}
        for (slot, depth), probs_V in self._probs.items():
            probs_BMV[places[slot], depth] = probs_V
        return probs_BMV
