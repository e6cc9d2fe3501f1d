"""What a draft model has still to read: the committed tokens of each slot that are not in its cache.

The target commits tokens; a draft model with a cache of its own has read some of them while it drafted, and some not.
`Backlog` holds those it has not, in `pending`; the last entry is the root. A proposal starts by reading them, so the
cache never holds a token that was not committed for longer than one step.

Steps without a draft let the backlog grow. It is then read in pieces that fit the cache's tail.

Worked example: tail 8, 20 tokens pending, 3 of the tail's rows needed for more: pieces of 5, 5, 5, and the last 5 stay.

Shapes: B slots of the call, M rows of each, V vocabulary.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.errors import ConfigError
from outrider.proposer import SessionPlan
from outrider.sampling import Sampling
from outrider.target import Target, TargetSession

__all__ = ["Backlog", "open_model"]


def open_model(model: Target, plan: SessionPlan, tail: int) -> TargetSession:
    """A draft model's own cache for a session.

    Raises:
        ConfigError: if the model reads fewer positions than the session has.
    """
    known = model.spec.max_positions
    if known < plan.max_positions:
        raise ConfigError(f"the draft model reads {known} positions, not {plan.max_positions}; set max_len={known}")
    return model.open(model.plan(plan.max_slots, plan.max_positions, tail))


@final
class Backlog:
    """A draft model's cache, what it has not read, and each slot's sampling settings."""

    def __init__(self, model: TargetSession, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.pending: dict[int, list[int]] = {}
        self.samplings: dict[int, Sampling] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: Sampling) -> None:
        """Read a prompt; its last token, the root, stays pending."""
        self.model.prefill([slot], [tokens[:-1]])
        self.pending[slot] = [tokens[-1]]
        self.samplings[slot] = sampling

    def release(self, slot: int) -> None:
        self.model.cache.reset(slot)
        del self.pending[slot], self.samplings[slot]

    def catch_up(self, slots: Sequence[int], num_more: int) -> None:
        """Read backlogs until what is pending fits the tail together with `num_more` further rows."""
        piece = self.model.cache.plan.tail - num_more
        for slot in slots:
            while len(self.pending[slot]) > piece:
                self.read([slot], [self.pending[slot][:piece]])
                self.pending[slot] = self.pending[slot][piece:]

    def read(self, slots: Sequence[int], feeds: Sequence[Sequence[int]]) -> Tensor:
        """Read each slot's tokens into the cache for good; logits after the last of them, [B, V]."""
        logits_BMV = self.read_with(slots, feeds, [[] for _ in slots])
        last_B = torch.tensor([len(feed) - 1 for feed in feeds], device=logits_BMV.device)
        return logits_BMV[torch.arange(len(feeds), device=logits_BMV.device), last_B]

    def read_with(
        self, slots: Sequence[int], feeds: Sequence[Sequence[int]], others: Sequence[Sequence[int]]
    ) -> Tensor:
        """Read each slot's tokens for good and `others` behind them for this once; logits at all rows, [B, M, V]."""
        rows = [[*feed, *other] for feed, other in zip(feeds, others, strict=True)]
        chain = Draft.of_chains([row[1:] for row in rows], self.device)
        logits_BMV = self.model.forward(slots, [row[0] for row in rows], chain).logits_BMV
        self.model.cache.extend(slots, [len(feed) for feed in feeds])
        return logits_BMV

    def take_back(self, slot: int, count: int) -> None:
        """Forget the last `count` tokens that were read."""
        self.model.cache.truncate(slot, self.model.cache.lengths[slot] - count)

    def first_positions(self, slots: Sequence[int]) -> list[int]:
        """The text index of the token after the last one read, of each slot."""
        return self.model.cache.lengths_of(slots)

    @property
    def num_bytes(self) -> int:
        return self.model.cache.plan.num_bytes
