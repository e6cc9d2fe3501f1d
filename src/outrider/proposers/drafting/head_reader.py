"""A recurrent head's own cache, and the pairs of target state and token that it has not read.

Only committed text is kept in the cache, read with the target's features; drafted entries lie behind the committed
length, where the next read overwrites them. `RecurrentSession` shows an example.

Shapes: B slots, R rows of a read, E hidden size of the head, F features.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from outrider.cache import KVCache, Window
from outrider.errors import ConfigError
from outrider.models.draft_network import Reading
from outrider.models.recurrent import RecurrentHead
from outrider.ops.base import GraphCache
from outrider.placement import place_tokens
from outrider.proposer import Kept, Reused, SessionPlan
from outrider.proposers.drafting.chain import ChainReader
from outrider.proposers.drafting.pending import Pending, inputs_of, kept_of, take_over
from outrider.sampling import SamplingParams

__all__ = ["SHORT", "HeadReader"]

SHORT = 32
"""Up to this many pending pairs of each slot share one read; longer ones (prompts) are read slot by slot."""
PIECE = 256
"""Rows of one read of many pending tokens."""


@final
class HeadReader(ChainReader):
    """The reader of a recurrent head.

    Args:
        tail: rows that may lie behind a slot's committed length.
        num_nodes: the longest chain.
        replays: reads of the same shape may be recorded and replayed.
        window: the positions of a text that the head, of one layer, reads; None for all.

    Raises:
        ConfigError: if a layer's sliding window is narrower than the rows of a step.
    """

    reads_idle = True  # their rows are padding otherwise

    def __init__(
        self,
        head: RecurrentHead,
        plan: SessionPlan,
        *,
        vocab_size: int,
        tail: int,
        num_nodes: int,
        replays: bool,
        window: Window | None = None,
    ) -> None:
        # one mask serves all layers, so no row of a step may be beyond a window from another
        narrowest = min((one for one in head.windows if one is not None), default=tail)
        if narrowest < tail:
            raise ConfigError(
                f"the head has a sliding window of {narrowest} positions, and a step takes up to {tail} rows; "
                "give fewer num_nodes or another head"
            )
        self.cache = KVCache(head.plan(plan.max_slots, plan.max_positions, tail).within(window), plan.device)
        assert self.cache.plan.window is None or self.cache.plan.num_layers == 1, (
            "deeper layers depend on what was seen"
        )
        self.piece = PIECE if window is None else min(PIECE, window.recent)
        self.network = self.head = head
        self.ids_K = head.ids_K
        self.vocab_size = vocab_size
        self.max_recorded = num_nodes + 1
        self.graph_cache = GraphCache() if replays else None
        self.pending: dict[int, Pending] = {}
        self.samplings: dict[int, SamplingParams] = {}
        self.states: dict[int, Tensor] = {}
        """The head's state behind the last pair that was read, by slot."""

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor) -> None:
        """Make a prompt's pairs pending."""
        self.pending[slot] = Pending()
        self.pending[slot].add(features_TF, list(tokens[1:]))
        self.samplings[slot] = sampling

    def kept(self, slot: int) -> Kept:
        """Copy the pairs of a slot that were read, and the features of those that were not."""
        return kept_of(self.cache, slot, self.pending[slot])

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor, reused: Reused
    ) -> None:
        """Take over pairs that were read, and make those behind them pending."""
        num_read, features_TF = take_over(self.cache, slot, features_TF, reused)
        self.admit(slot, tokens[num_read:], sampling, features_TF)

    def release(self, slot: int) -> None:
        """Free a slot."""
        self.cache.reset(slot)
        del self.pending[slot], self.samplings[slot]
        self.states.pop(slot, None)

    def num_pending(self, slot: int) -> int:
        return len(self.pending[slot].tokens)

    def ready(self, slots: Sequence[int]) -> list[int]:
        return [slot for slot in slots if slot in self.states or self.pending[slot].tokens]

    def catch_up(self, slots: Sequence[int], most: int) -> None:
        """Read pending pairs until no slot has more than `most`, but at least one: a draft begins with its output."""
        for slot in slots:
            pairs = self.pending[slot]
            while len(pairs.tokens) > most:
                count = min(self.piece, len(pairs.tokens) - 1)
                self.cache.slide(slot, count)
                states_RE, tokens_R, counts = inputs_of(self.head, {slot: pairs.take(count)}, self.cache.device)
                self.head.store(states_RE, tokens_R, place_tokens(self.cache, [slot], counts), self.cache)
                self.cache.extend([slot], counts)

    def take(self, slots: Sequence[int], most: int | None = None) -> dict[int, Pending]:
        most = min(SHORT if most is None else most, self.piece)
        self.catch_up(slots, most)
        for slot in slots:
            self.cache.slide(slot, min(most, self.num_pending(slot)))
        return {slot: self.pending[slot].take(most) for slot in slots}

    def keep(self, feeds: Mapping[int, Pending], depths: Mapping[int, int], states_BE: Tensor | None) -> None:
        self.cache.extend(list(feeds), [len(feed.tokens) for feed in feeds.values()])
        if states_BE is not None:
            self.states |= zip(feeds, states_BE, strict=True)

    def start(self, slots: Sequence[int]) -> Reading:
        unread = self.take([slot for slot in slots if self.num_pending(slot)])
        logits_BK = self._read(unread, num_predicted=1 if len(slots) == 1 else 0) if unread else None
        states_BE = torch.stack([self.states[slot] for slot in slots])
        return Reading(states_BE, self.head.predict(states_BE) if logits_BK is None else logits_BK)

    def advance(self, slots: Sequence[int], states_BE: Tensor, tokens_B: Tensor, level: int) -> Reading:
        placement = place_tokens(self.cache, slots, [1] * len(slots), [level - 1] * len(slots))
        return self.head.read(
            states_BE, tokens_B, placement, self.cache, num_predicted=len(slots), graph_cache=self.graph_cache
        )

    def _read(self, feeds: Mapping[int, Pending], num_predicted: int) -> Tensor | None:
        """Read pairs for good, keep the state behind each slot's last, and return the logits that are wanted."""
        states_RE, tokens_R, counts = inputs_of(self.head, feeds, self.cache.device)
        placement = place_tokens(self.cache, list(feeds), counts)
        out_RE, logits_NK = self.head.read(
            states_RE, tokens_R, placement, self.cache, num_predicted=num_predicted, graph_cache=self.graph_cache
        )
        self.cache.extend(list(feeds), counts)
        # Rows of a slot lie together, so its last state is at the end of its share.
        end = 0
        for slot, count in zip(feeds, counts, strict=True):
            end += count
            self.states[slot] = out_RE[end - 1]
        return logits_NK

    def text_lengths(self, slots: Sequence[int]) -> list[int]:
        return [length + 1 for length in self.cache.text_lengths_of(slots)]
