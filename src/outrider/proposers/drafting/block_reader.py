"""The state of a drafter that reads the target's states alone: its cache, what it has not read, and each slot's root.

A block drafter (`outrider.models.blocks.dflash`) keeps keys and values of committed positions only. The features of
position t are pending from the step that committed t until the next draft, which reads them with its block; the root
has no features yet, its token opens the block.

    text x0 x1 x2 r             pending features of 0 1 2
    draft                       reads 0 1 2 for good, and a block r m m m behind them that is not kept
    accepted a, bonus y         pending features of r's and a's positions; the root is y

Shapes: B slots, M rows of a block, T prompt tokens, E hidden size, F features.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.blocks.dflash import DFlashNetwork
from outrider.proposer import Commit, Kept, Reused, SessionPlan
from outrider.proposers.drafting.pending import Pending, kept_of, take_over
from outrider.proposers.drafting.recurrent import rows_of
from outrider.sampling import SamplingParams

__all__ = ["BlockReader"]

SHORT = 32
"""Up to this many pending positions of each slot are read with its block; more of them (prompts) before it."""
PIECE = 256
"""Positions of one read of many."""


@final
class BlockReader:
    """One session's cache and pending features.

    Args:
        block_size: rows of a block.
    """

    def __init__(self, network: DFlashNetwork, plan: SessionPlan, block_size: int) -> None:
        self.network = network
        self.block_size = block_size
        self.cache = KVCache(network.plan(plan.max_slots, plan.max_positions, block_size), plan.device)
        self.pending: dict[int, Pending] = {}
        self.roots: dict[int, int] = {}
        self.samplings: dict[int, SamplingParams] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor) -> None:
        """Make the positions of a prompt pending; its last token is the root."""
        self.pending[slot] = Pending()
        self.pending[slot].add(features_TF, list(tokens[1:]))
        self.roots[slot] = tokens[-1]
        self.samplings[slot] = sampling

    def kept(self, slot: int) -> Kept:
        """Copy the positions of a slot that were read, and the features of those that were not."""
        return kept_of(self.cache, slot, self.pending[slot])

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor, reused: Reused
    ) -> None:
        """Take over positions that were read, and make those behind them pending."""
        num_read, features_TF = take_over(self.cache, slot, features_TF, reused)
        self.admit(slot, tokens[num_read:], sampling, features_TF)

    def commit(self, commit: Commit, features_BMF: Tensor) -> None:
        """Make the committed rows of a step pending; the bonus is the next root."""
        slot, rows, tokens, place = commit
        self.pending[slot].add(rows_of(features_BMF[place], rows[: len(tokens)]), tokens)
        self.roots[slot] = tokens[-1]

    def release(self, slot: int) -> None:
        """Free a slot."""
        self.cache.reset(slot)
        del self.pending[slot], self.roots[slot], self.samplings[slot]

    def num_pending(self, slot: int) -> int:
        """Count the committed positions of a slot that were not read."""
        return len(self.pending[slot].tokens)

    def roots_of(self, slots: Sequence[int]) -> Tensor:
        """Return each slot's root, int64 [B]."""
        return torch.tensor([self.roots[slot] for slot in slots], device=self.cache.device)

    def text_lengths(self, slots: Sequence[int]) -> list[int]:
        """Count each slot's committed tokens: the position of the first drafted token."""
        return [self.cache.lengths[slot] + self.num_pending(slot) + 1 for slot in slots]

    def catch_up(self, slots: Sequence[int], most: int = SHORT) -> None:
        """Read pending positions until no slot has more than `most`."""
        for slot in slots:
            while (count := self.num_pending(slot)) > most:
                feed = self.pending[slot].take(min(PIECE, count))
                self.network.read(self.cache, [slot], [len(feed.tokens)], self._context([feed]))

    def blocks(self, slots: Sequence[int], mask_id: int) -> Tensor:
        """Read what is pending and a block behind each slot's root, and return the block's states [B, M, E]."""
        self.catch_up(slots)
        feeds = [self.pending[slot].take(SHORT) for slot in slots]
        tokens_BM = torch.full((len(slots), self.block_size), mask_id, device=self.cache.device)
        tokens_BM[:, 0] = self.roots_of(slots)
        counts = [len(feed.tokens) for feed in feeds]
        return self.network.draft(self.cache, slots, counts, self._context(feeds), tokens_BM)

    def _context(self, feeds: Sequence[Pending]) -> Tensor:
        parts = [part for feed in feeds for part in feed.features]
        if not parts:
            width, dtype = self.network.spec.decoder.hidden_size, self.network.ops.activation_dtype
            return torch.empty(0, width, dtype=dtype, device=self.cache.device)
        return self.network.fuse(torch.cat(parts))
