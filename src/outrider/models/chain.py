"""Greedy chains, drafted without coming back to Python between two tokens.

Drafting L tokens is one read of what was accepted and L - 1 reads of one row a slot, and between two of them stand an
output head, an argmax, an embedding and the next position. Each is short: from Python the steps in between cost more
than the reads of a small drafter. All of them are operations, so a back end may record them and repeat them.

    choose    read R rows, take the states of N of them, predict, choose      tokens [N], and the inputs of a next read
    go on     read these N rows one position on, predict, choose, read, ...   tokens [L - 1, N]

These are two graphs, because the first depends on the number of rows and the second on the number of levels: there
are few of each, and many pairs. Where the rows are few and no slot has more of them than another, both are one graph.
A drafter that needs one token per row only `choose`s.

Worked example: slots 0 and 2 have read 5 and 9 tokens and were given 2 and 1 more. Rows 0, 1 (slot 0) and 2 (slot 2)
are read at positions 5, 6 and 9, the chains start from rows 1 and 2, and go on at positions 7 and 10.

Shapes: R rows of the first read, N rows that are drafted from, L levels, E hidden size, K output columns, X = E, or 2 E
of which the lower half are states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.ops.base import GraphBody, GraphCache, Ops, Result
from outrider.placement import Placement

__all__ = ["ChosenTokens", "DraftStep", "GreedyChain"]

PIECE = 16
"""Levels of one graph at most; longer chains repeat it."""
WHOLE_ROWS = 8
"""Up to so many rows, equal in all slots, the first read and those behind it are one graph."""


@dataclass(frozen=True, kw_only=True)
class DraftStep:
    """One read of a chain, as operations of one back end on one cache.

    read           output states of all rows; may change its input
    predict        logits of states
    ids_K          tokens of the columns; None if column k is token k
    embedding_VE   contiguous
    reads_states   whether inputs are embeddings above states, [2R, E], and the next states are the last output, or
                   embeddings alone
    """

    ops: Ops
    read: Callable[[Tensor, Placement], Tensor]
    predict: Callable[[Tensor], Tensor]
    ids_K: Tensor | None
    embedding_VE: Tensor
    reads_states: bool

    def body(self, tokens_LN: Tensor, rows_N: Tensor | None, given: int) -> GraphBody:
        """L reads; the states of the first at `rows_N` (None for all) are drafted from.

        It gives the inputs of the read behind level `given`.
        """
        ops = self.ops

        def body(x_RE: Tensor, placement: Placement) -> Result:
            inputs: list[Tensor] = []
            for level, tokens_N in enumerate(tokens_LN):
                states_RE = self.read(x_RE, ops.shifted(placement, level) if level else placement)
                states_NE = states_RE if level or rows_N is None else ops.embed(states_RE, rows_N)
                N, E = states_NE.shape
                x_RE = states_NE.new_empty(2 * N if self.reads_states else N, E)
                ops.next_tokens(self.predict(states_NE), self.ids_K, self.embedding_VE, tokens_N, x_RE[:N])
                if self.reads_states:
                    ops.collect(states_NE, None, 0.0, x_RE[N:], 0)
                inputs.append(x_RE)
            return Result(None, inputs[given])

        return body


class ChosenTokens(NamedTuple):
    """Tokens int64 [L, N], valid until the next call, and the inputs [X, E] of a read behind the first of them."""

    tokens_LN: Tensor
    next_RE: Tensor


@final
class GreedyChain:
    """The chains of one drafter on one cache.

    Args:
        num_levels: the longest chain.
    """

    def __init__(self, draft_step: DraftStep, cache: KVCache, num_levels: int) -> None:
        self.draft_step = draft_step
        self.cache = cache
        self.num_levels = num_levels
        self.graph_cache = GraphCache()
        self._tokens: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}

    @torch.inference_mode()
    def choose(self, x_RE: Tensor, placement: Placement, rows: Sequence[int], num_levels: int = 1) -> ChosenTokens:
        """Read the rows of a placement, and choose the token that follows each of the given ones.

        Args:
            num_levels: of tokens; with more than one, `rows` are the last ones of slots with equally many.
        """
        R, N = placement.positions_BM.numel(), len(rows)
        assert 0 <= min(rows) <= max(rows) < R, f"rows {rows} of {R}"
        rows_N = None
        if list(rows) != list(range(R)):
            if N not in self._rows:
                self._rows[N] = torch.empty(N, dtype=torch.int64, device=self.cache.device)
            rows_N = self._rows[N].copy_(torch.tensor(rows))
        tokens_LN = self._tokens_of(N)[:num_levels]
        body = self.draft_step.body(tokens_LN, rows_N, given=0)
        key = ("choose", N, rows_N is None, num_levels)
        return ChosenTokens(tokens_LN, self._replayed(key, body, x_RE, placement))

    @torch.inference_mode()
    def draft(
        self, x_RE: Tensor, placement: Placement, slots: Sequence[int], counts: Sequence[int], num_levels: int
    ) -> ChosenTokens:
        """Read the next `counts[b]` tokens of each slot, and draft behind them. The cache's lengths stay.

        Args:
            x_RE: embeddings of these tokens, slot by slot, above states if the link reads them.
            placement: of these tokens (`KVCache.place_tokens`) with `num_ahead` of `num_levels`.
        """
        assert 1 <= num_levels <= self.num_levels, f"{num_levels} levels of {self.num_levels}"
        is_whole = len(set(counts)) == 1 and sum(counts) <= WHOLE_ROWS and num_levels <= PIECE
        num_chosen = num_levels if is_whole else 1
        first = self.choose(x_RE, placement, [end - 1 for end in accumulate(counts)], num_chosen)
        tokens_LN, next_RE = self._tokens_of(len(slots))[:num_levels], first.next_RE
        for level in range(num_chosen, num_levels, PIECE):
            piece_LN = tokens_LN[level : level + PIECE]
            behind = [count + level - 1 for count in counts]
            further = self.cache.place_tokens(slots, [1] * len(slots), behind, num_ahead=len(piece_LN) - 1)
            body = self.draft_step.body(piece_LN, None, given=len(piece_LN) - 1)
            next_RE = self._replayed(("go on", level, len(piece_LN)), body, next_RE, further)
        return ChosenTokens(tokens_LN, first.next_RE)

    def _tokens_of(self, N: int) -> Tensor:
        """Where the tokens of N rows are written: graphs know the place."""
        if N not in self._tokens:
            self._tokens[N] = torch.empty(self.num_levels, N, dtype=torch.int64, device=self.cache.device)
        return self._tokens[N]

    def _replayed(self, key: tuple[object, ...], body: GraphBody, x_RE: Tensor, placement: Placement) -> Tensor:
        next_RE = self.draft_step.ops.replay(self.graph_cache, key, body, x_RE, placement).features_RT
        assert next_RE is not None, "a chain's body gives the next inputs"
        return next_RE
