"""Chains on the CPU without Python between two tokens: a back end records the operations and replays them.

Drafting L tokens is one read of what was committed and L - 1 reads of one row a slot. Python between two reads would
cost more than a small drafter's read.

    choose    read R rows, take the states of N of them, predict, choose      tokens [N], and the inputs of a next read
    go on     read these N rows one position on, predict, choose, read, ...   tokens [L - 1, N]

The first depends on the number of rows, the second on the number of levels. Few rows, equally many in all slots, make
one graph of both. A drafter that needs one token per row (PARD) only `choose`s.

A token is the most probable one, or drawn with the target's noise by the law of its row.

Example: two slots have read 5 and 9 tokens; 2 and 1 are pending. Their rows 0 to 2 are read at positions 5, 6, 9.

Shapes: R rows of the first read, N rows that are drafted from, L levels, E hidden size, X = E, or 2 E with states.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.draft_network import DraftNetwork, DraftStep
from outrider.noise import ChainLaws
from outrider.ops.base import GraphBody, GraphCache
from outrider.placement import Placement, place_tokens
from outrider.proposers.drafting.pending import Pending, inputs_of

__all__ = ["ChosenTokens", "FusedChain", "Law"]

Law = tuple[int, int, int, int]

PIECE = 16
"""Levels of one graph at most; longer chains repeat it."""
WHOLE_ROWS = 8
"""Up to so many rows, equal in all slots, the first read and those behind it are one graph."""


class ChosenTokens(NamedTuple):
    """Tokens int64 [L, N], valid until the next call, and the inputs [X, E] of a read behind the first of them."""

    tokens_LN: Tensor
    next_RE: Tensor


@final
class FusedChain:
    """The chains of one drafter on one cache.

    Args:
        draft_step: the network's read, on this cache.
        num_levels: the longest chain.
    """

    def __init__(self, network: DraftNetwork, draft_step: DraftStep, cache: KVCache, num_levels: int) -> None:
        self.network = network
        self.draft_step = draft_step
        self.cache = cache
        self.num_levels = num_levels
        self.graph_cache = GraphCache()
        self._tokens: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}
        self._laws: dict[int, Tensor] = {}

    @classmethod
    def of(cls, network: DraftNetwork | None, cache: KVCache, num_levels: int) -> Self | None:
        """Make the chains of a network, where it is one of operations on the CPU; else None.

        A GPU's graphs have fixed shapes (`recorded_chain.py`).
        """
        draft_step = None if network is None or cache.device.type != "cpu" else network.draft_step(cache)
        return None if network is None or draft_step is None else cls(network, draft_step, cache, num_levels)

    @torch.inference_mode()
    def choose(
        self,
        x_RE: Tensor,
        placement: Placement,
        rows: Sequence[int],
        num_levels: int = 1,
        laws: Sequence[Law] | None = None,
    ) -> ChosenTokens:
        """Read the rows of a placement, and choose the token that follows each of the given ones.

        Args:
            laws: `noise.chain_law` of each of the rows; None for the most probable tokens.
            num_levels: tokens behind each row; with more than one, `rows` are the last ones of slots with equally many.
        """
        R, N = placement.positions_BM.numel(), len(rows)
        assert 0 <= min(rows) <= max(rows) < R, f"rows {rows} of {R}"
        rows_N = None
        if list(rows) != list(range(R)):
            if N not in self._rows:
                self._rows[N] = torch.empty(N, dtype=torch.int64, device=self.cache.device)
            # Graphs hold the address of this buffer, so its contents change in place.
            rows_N = self._rows[N].copy_(torch.tensor(rows))
        tokens_LN = self._tokens_of(N)[:num_levels]
        body = self.draft_step.body(tokens_LN, rows_N, 0, self._laws_of(laws, 0))
        key = ("choose", N, rows_N is None, num_levels, laws is None)
        return ChosenTokens(tokens_LN, self._replayed(key, body, x_RE, placement))

    @torch.inference_mode()
    def draft(self, feeds: Mapping[int, Pending], num_levels: int, laws: Sequence[Law] | None = None) -> ChosenTokens:
        """Read each slot's tokens, and draft behind them, by the law of each slot. The cache's lengths stay."""
        assert 1 <= num_levels <= self.num_levels, f"{num_levels} levels of {self.num_levels}"
        slots, (states_RE, tokens_R, counts) = list(feeds), inputs_of(self.network, feeds, self.cache.device)
        placement = place_tokens(self.cache, slots, counts, num_ahead=num_levels)
        x_RE = self.network.inputs(states_RE, tokens_R, placement)
        is_whole = len(set(counts)) == 1 and sum(counts) <= WHOLE_ROWS and num_levels <= PIECE
        num_chosen = num_levels if is_whole else 1
        first = self.choose(x_RE, placement, [end - 1 for end in accumulate(counts)], num_chosen, laws)
        tokens_LN, next_RE = self._tokens_of(len(slots))[:num_levels], first.next_RE
        for level in range(num_chosen, num_levels, PIECE):
            piece_LN = tokens_LN[level : level + PIECE]
            # Of the drafted tokens, the last one is not in the cache yet.
            behind = [count + level - 1 for count in counts]
            further = place_tokens(self.cache, slots, [1] * len(slots), behind, num_ahead=len(piece_LN) - 1)
            body = self.draft_step.body(piece_LN, None, len(piece_LN) - 1, self._laws_of(laws, level))
            next_RE = self._replayed(("go on", level, len(piece_LN), laws is None), body, next_RE, further)
        return ChosenTokens(tokens_LN, first.next_RE)

    def _tokens_of(self, N: int) -> Tensor:
        """Return the buffer for the tokens of N rows; graphs hold its address, so it is made once."""
        if N not in self._tokens:
            self._tokens[N] = torch.empty(self.num_levels, N, dtype=torch.int64, device=self.cache.device)
        return self._tokens[N]

    def _laws_of(self, laws: Sequence[Law] | None, level: int) -> ChainLaws | None:
        """Write the laws into the buffer for so many rows, whose address graphs hold."""
        if laws is None:
            return None
        if len(laws) not in self._laws:
            self._laws[len(laws)] = torch.empty(len(laws), 4, dtype=torch.int64, device=self.cache.device)
        return ChainLaws(self._laws[len(laws)].copy_(torch.tensor(laws)), level)

    def _replayed(self, key: tuple[object, ...], body: GraphBody, x_RE: Tensor, placement: Placement) -> Tensor:
        next_RE = self.draft_step.ops.replay(self.graph_cache, key, body, x_RE, placement).features_RT
        assert next_RE is not None, "a chain's body gives the next inputs"
        return next_RE
