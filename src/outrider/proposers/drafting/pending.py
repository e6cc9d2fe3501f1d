"""Pending tokens: what a drafter with a cache of its own has still to read of a slot's committed text.

A draft model reads tokens; a recurrent head reads, with each token, the target's features of the position before it.

Shapes: T tokens, R tokens of all slots, F features (0 for a draft model), E width of the input states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.draft_network import DraftNetwork
from outrider.proposer import Kept, Reused

__all__ = ["Inputs", "Pending", "TakenOver", "inputs_of", "kept_of", "take_over"]


@final
@dataclass(eq=False)
class Pending:
    """The pending tokens of one slot, oldest first, and their features, in parts [T, F]."""

    features: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, features_TF: Tensor, tokens: Sequence[int]) -> None:
        """Append tokens, each with the features of the position before it."""
        assert len(features_TF) == len(tokens), f"{len(features_TF)} features for {len(tokens)} tokens"
        if tokens:
            self.features.append(features_TF)
            self.tokens += tokens

    def take(self, count: int) -> "Pending":
        """Remove and return the first `count` tokens."""
        if count >= len(self.tokens):
            taken = Pending(self.features, self.tokens)
            self.features, self.tokens = [], []
            return taken
        features_TF = torch.cat(self.features)
        taken = Pending([features_TF[:count]], self.tokens[:count])
        self.features, self.tokens = [features_TF[count:]], self.tokens[count:]
        return taken


def kept_of(cache: KVCache, slot: int, pending: Pending) -> Kept:
    """Copy the positions of a slot that were read, and the features of those that are pending."""
    [num_read] = cache.text_lengths_of([slot])
    features_TF = torch.cat(pending.features) if pending.features else None
    return Kept(num_read + len(pending.tokens), caches=(cache.copy(slot, num_read),), features_TF=features_TF)


class TakenOver(NamedTuple):
    """The positions that a slot took over, and the features [T, F] of all behind them."""

    num_read: int
    features_TF: Tensor


def take_over(cache: KVCache, slot: int, features_TF: Tensor, reused: Reused) -> TakenOver:
    """Take over positions that were read; the features of kept ones that were not precede the given ones."""
    kept, length = reused
    assert kept is not None, "a session with feature layers reuses what it kept"
    (cached,) = kept.caches
    num_read = min(length, cached.length)
    cache.paste(slot, cached, num_read)
    if num_read < length:
        assert kept.features_TF is not None, "as many positions are kept"
        features_TF = torch.cat([kept.features_TF[: length - num_read], features_TF])
    return TakenOver(num_read, features_TF)


class Inputs(NamedTuple):
    """Input states [R, E] and tokens [R] of one read, slot by slot, and the number of rows of each slot."""

    states_RE: Tensor
    tokens_R: Tensor
    counts: list[int]


def inputs_of(network: DraftNetwork, feeds: Mapping[int, Pending], device: torch.device) -> Inputs:
    """Gather what one read of these slots' tokens takes."""
    tokens_R = torch.tensor([token for feed in feeds.values() for token in feed.tokens], device=device)
    parts = [part for feed in feeds.values() for part in feed.features] or [torch.empty(len(tokens_R), 0)]
    states_RE = network.fuse(parts[0] if len(parts) == 1 else torch.cat(parts))
    return Inputs(states_RE, tokens_R, [len(feed.tokens) for feed in feeds.values()])
