"""The sampler of drafted chains: from logits, level by level, to tokens, and to a draft with its probabilities.

A drafter gives logits, one row per slot that is still growing. `ChainSampler` chooses the tokens, keeps the
distributions they were drawn from where the verifier needs them, and returns the finished draft. A chain is greedy, or
sampled with the request's own temperature and filters: from the target's noise under the coupled rule, where equal
noise makes agreement likelier, and from noise of its own under the ratio tests, which need the probabilities and an
independent draw, numbered by depth so that no later step repeats it.

A drafter with a reduced vocabulary passes `ids_K`, the target ids of its columns. Other tokens have probability 0.

Tokens stay on the device while a chain grows, and are copied to the host once.

Worked example: columns 0, 1 stand for target tokens 7 and 3; logits [0.1, 2.0] choose token 3.

Shapes: B growing slots, K columns, V the target's vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.noise import Stream
from outrider.proposer import SessionPlan
from outrider.sampling import SamplingParams, choose, distribution, largest

__all__ = ["ChainSampler", "widen"]


def widen(logits_BK: Tensor, ids_K: Tensor | None, vocab_size: int) -> Tensor:
    """Spread logits over the target's vocabulary; minus infinity where the drafter has no column."""
    if ids_K is None:
        return logits_BK
    logits_BV = logits_BK.new_full((len(logits_BK), vocab_size), -torch.inf)
    logits_BV[:, ids_K] = logits_BK
    return logits_BV


class _Level(NamedTuple):
    """One token of every slot whose chain is that deep."""

    slots: list[int]
    tokens_B: Tensor


@final
class ChainSampler:
    """The chains of one proposal, by slot. They grow level by level: a slot that is left out once is finished.

    Args:
        sampled: draw the tokens with each slot's sampling settings instead of taking the most probable.
        vocab_size: the target's; needed with `ids_K`.
    """

    def __init__(
        self,
        plan: SessionPlan,
        slots: Sequence[int],
        samplings: Mapping[int, SamplingParams],
        *,
        sampled: bool,
        vocab_size: int,
        ids_K: Tensor | None = None,
    ) -> None:
        self.plan = plan
        self._slots = list(slots)
        self._levels: list[_Level] = []
        self._samplings = samplings
        self._sampled = sampled
        self._vocab_size = vocab_size
        self._ids_K = ids_K
        self._probs: dict[tuple[int, int], Tensor] = {}

    def grow(self, slots: Sequence[int], logits_BK: Tensor, first_positions: Sequence[int]) -> Tensor:
        """Append one token to the chain of each of `slots`, and return these tokens, int64 [B].

        Args:
            first_positions: the text index of the first token of each slot's chain (that of the root plus 1).
        """
        tokens_B = self._choose(slots, logits_BK, first_positions)
        self.take(slots, tokens_B)
        return tokens_B

    def take(self, slots: Sequence[int], tokens_B: Tensor) -> None:
        """Append one token to the chain of each of `slots`, chosen elsewhere by the same rule."""
        self._levels.append(_Level(list(slots), tokens_B))

    def _choose(self, slots: Sequence[int], logits_BK: Tensor, first_positions: Sequence[int]) -> Tensor:
        if not self._sampled:
            best_B = largest(logits_BK)
            return best_B if self._ids_K is None else self._ids_K[best_B]
        logits_BV = widen(logits_BK, self._ids_K, self._vocab_size)
        depth = len(self._levels)
        samplings = [self._samplings[slot] for slot in slots]
        if self.plan.noise is Stream.DRAFT:
            for slot, sampling, logits_V in zip(slots, samplings, logits_BV, strict=True):
                self._probs[slot, depth] = distribution(logits_V[None], sampling)[0]
        positions_B = torch.tensor([first + depth for first in first_positions], device=logits_BV.device)
        draw = depth if self.plan.noise is Stream.DRAFT else 0  # no step may reuse what an earlier one was judged by
        return choose(logits_BV, positions_B, samplings, self.plan.noise, draw)

    @property
    def tokens(self) -> dict[int, list[int]]:
        """The chain of every slot so far, on the host."""
        chains: dict[int, list[int]] = {slot: [] for slot in self._slots}
        if self._levels:
            flat = torch.cat([level.tokens_B for level in self._levels]).tolist()
            for slot, token in zip((slot for level in self._levels for slot in level.slots), flat, strict=True):
                chains[slot].append(token)
        return chains

    def draft(self) -> Draft:
        """Return the chains as one draft, in the order of the slots; on a GPU without copying tokens to the host."""
        is_even = bool(self._levels) and all(level.slots == self._slots for level in self._levels)
        if self.plan.device.type == "cuda" and is_even and not self._probs:
            tokens_BN = torch.stack([level.tokens_B for level in self._levels], dim=1)
            return Draft.on_device(tokens_BN, [len(self._levels)] * len(self._slots))
        return Draft.of_chains(list(self.tokens.values()), self.plan.device, self._stacked())

    def _stacked(self) -> Tensor | None:
        if not self._probs:
            return None
        sample_V = next(iter(self._probs.values()))
        probs_BMV = sample_V.new_zeros(len(self._slots), 1 + len(self._levels), sample_V.shape[0])
        places = {slot: place for place, slot in enumerate(self._slots)}
        for (slot, depth), probs_V in self._probs.items():
            probs_BMV[places[slot], depth] = probs_V
        return probs_BMV
