"""Chains from one pass of a recurrent head: masked rows behind the last pair stand for tokens that are not known yet.

Behind the pairs of state and token that a slot has still to read stand copies of one masked pair, and every row
predicts one token. A row sees the rows before it, so a mask knows how far behind the root it stands.

    pending (f3,a) (f4,y)                a, y committed; y is the root
    one pass over (f3,a) (f4,y) m m      the last pair drafts token 1, the masks tokens 2 and 3
    cache         ... (f3,a) (f4,y)      the masks are not kept

Tokens of a chain are independent of each other given the text, so a sampled chain's distribution is the product of its
rows', as the ratio tests need it.

Shapes: B slots, R rows of all, T rows of one slot, E hidden size, K columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.placement import place_tokens
from outrider.proposer import SessionPlan
from outrider.proposers.drafting.head_reader import HeadReader
from outrider.proposers.drafting.pending import Pending
from outrider.proposers.drafting.sampler import ChainSampler

__all__ = ["MaskedChains", "MaskedPair"]


class MaskedPair(NamedTuple):
    """The pair that stands for an unknown one: a token, and an input state [1, E] of the head."""

    token: int
    state_1E: Tensor


@final
class MaskedChains:
    """The chains of one session.

    Args:
        reader: its cache holds the pending pairs and the longest chain behind its committed length.
        sampled: draw the tokens with each slot's sampling settings instead of taking the most probable.
    """

    def __init__(self, reader: HeadReader, plan: SessionPlan, mask: MaskedPair, *, sampled: bool) -> None:
        self.reader = reader
        self.plan = plan
        self.mask = mask
        self.sampled = sampled

    def draft(self, slots: Sequence[int], depths: Mapping[int, int]) -> Draft:
        """Draft a chain of `depths[slot]` tokens for each slot; none where there is no pair yet."""
        reader = self.reader
        active = {slot: depths[slot] for slot in reader.ready([slot for slot in slots if depths[slot] > 0])}
        if not active:
            return Draft.empty(len(slots), self.plan.device)
        states = self._read(active)
        levels = [[slot for slot, depth in active.items() if depth > level] for level in range(max(active.values()))]
        rows = torch.stack([states[slot][level] for level, growing in enumerate(levels) for slot in growing])
        sampler = ChainSampler(
            self.plan,
            slots,
            reader.samplings,
            sampled=self.sampled,
            vocab_size=reader.vocab_size,
            ids_K=reader.ids_K,
        )
        logits_RK = reader.head.predict(rows)
        for growing, logits_BK in zip(levels, torch.split(logits_RK, list(map(len, levels))), strict=True):
            sampler.grow(growing, logits_BK, reader.text_lengths(growing))
        return sampler.draft()

    def _read(self, depths: Mapping[int, int]) -> dict[int, Tensor]:
        """Read pending pairs for good and masks behind them for this once; states of the rows that draft, [T, E]."""
        reader, (mask, mask_1E) = self.reader, self.mask
        feeds = dict.fromkeys(depths, Pending()) | reader.take([slot for slot in depths if reader.num_pending(slot)])
        num_read = {slot: len(feed.tokens) for slot, feed in feeds.items()}
        tokens = {slot: [*feed.tokens, *[mask] * (depths[slot] - 1)] for slot, feed in feeds.items()}
        # a slot that drafts again without having read anything new starts from the state that it had
        behind: dict[int, Tensor] = {}
        if reading := [slot for slot in depths if tokens[slot]]:
            features = [part for feed in feeds.values() for part in feed.features]
            pending_RE = reader.head.fuse(torch.cat(features)) if features else mask_1E[:0]
            pending = dict(zip(feeds, torch.split(pending_RE, list(num_read.values())), strict=True))
            inputs = [part for slot in reading for part in (pending[slot], mask_1E.expand(depths[slot] - 1, -1))]
            counts = [len(tokens[slot]) for slot in reading]
            out_RE, _ = reader.head.read(
                torch.cat(inputs),
                torch.tensor([token for slot in reading for token in tokens[slot]], device=self.plan.device),
                place_tokens(reader.cache, reading, counts),
                reader.cache,
                graph_cache=reader.graph_cache,
            )
            reader.cache.extend(reading, [num_read[slot] for slot in reading])
            for slot, out_TE in zip(reading, torch.split(out_RE, counts), strict=True):
                count = num_read[slot]
                if count:
                    reader.states[slot] = out_TE[count - 1]
                behind[slot] = out_TE[count:]
        return {slot: torch.cat([reader.states[slot][None], behind.get(slot, mask_1E[:0])]) for slot in depths}
