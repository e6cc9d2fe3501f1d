"""The whole greedy chain of a draft model as one graph: what it has not read, and every drafted token.

A chain of k tokens is k forwards of a small model with an output head and an argmax between them. On a GPU each forward
may be a graph of its own, but then every token goes to the host and back before the next is read. Here the tokens
stay on the device: one copy brings slots, lengths and pending tokens, one replay reads them and drafts.

    slots 2, k = 3: pending [2, 2], counts [1, 2]
    read 2 x 2 rows -> state behind each slot's last -> d1 -> read 2 x 1 rows -> d2 -> read 2 x 1 rows -> d3

After a step in which every drafted token was accepted two are pending, the last of them and the bonus; otherwise one.
Longer runs of pending tokens are read before.

Shapes: B slots, P pending tokens of a slot, N drafted tokens, E hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.decoder import Decoder
from outrider.models.output_head import OutputHead
from outrider.ops.graph_buckets import bucket
from outrider.ops.graphs import Graph, GraphPool
from outrider.placement import Placement
from outrider.proposers.drafting.recorded import LEAST_LIMIT, packed, place_next, place_pending
from outrider.targets.static import upload

__all__ = ["NUM_PENDING", "ModelLoop"]

NUM_PENDING = 2


class _Recorded(NamedTuple):
    """What a graph reads (`packed`), and the recording, whose result are the tokens."""

    numbers: Tensor
    graph: Graph[Tensor]


@final
class ModelLoop:
    """Greedy chains of `num_nodes` tokens for all slots of a batch.

    Args:
        decoder: the draft model.
        output: its output head, which must have packed weights.
        cache: the draft model's; its tail has room for `NUM_PENDING + num_nodes - 1` rows.
        graphs: where the loop is recorded.
    """

    def __init__(self, decoder: Decoder, output: OutputHead, cache: KVCache, graphs: GraphPool, num_nodes: int) -> None:
        assert cache.plan.tail >= NUM_PENDING + num_nodes - 1, "the tail is too short for pending tokens and a draft"
        assert all(window is None for window in decoder.spec.windows), "sliding windows run unrecorded"
        self.decoder = decoder
        self.output = output
        self.cache = cache
        self.graphs = graphs
        self.num_nodes = num_nodes
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    def draft(self, slots: Sequence[int], feeds: Sequence[Sequence[int]]) -> Tensor:
        """Read up to `NUM_PENDING` tokens of each slot and draft behind them: tokens [B, N] on the device, valid until
        the next call. The cache's lengths stay."""
        counts = [len(feed) for feed in feeds]
        assert 0 < min(counts) <= max(counts) <= NUM_PENDING, f"{counts} pending tokens, of 1 to {NUM_PENDING}"
        lengths = self.cache.lengths_of(slots)
        limit = bucket(max(LEAST_LIMIT, max(lengths) + NUM_PENDING + self.num_nodes))
        recorded = self._recorded_for(bucket(len(slots)), limit)
        recorded.numbers.copy_(upload(packed(slots, lengths, feeds, NUM_PENDING), self.cache.device))
        recorded.graph.replay()
        return recorded.graph.result[: len(slots)]

    def _recorded_for(self, B: int, limit: int) -> _Recorded:
        if (B, limit) not in self._recorded:
            numbers = torch.zeros(B, 3 + NUM_PENDING, dtype=torch.int64, device=self.cache.device)
            graph = self.graphs.record(lambda: self._loop(numbers, limit))
            self._recorded[B, limit] = _Recorded(numbers, graph)
        return self._recorded[B, limit]

    @torch.inference_mode()
    def _loop(self, numbers: Tensor, limit: int) -> Tensor:
        slots_B, lengths_B, counts_B = (numbers[:, column].contiguous() for column in range(3))
        rows_B = torch.arange(len(slots_B), device=slots_B.device)
        first = place_pending(self.cache, slots_B, lengths_B, counts_B, NUM_PENDING, limit)
        states_BPE = self._states(numbers[:, 3:].contiguous(), first)
        states_BE = states_BPE[rows_B, (counts_B - 1).clamp(min=0)]
        tokens: list[Tensor] = []
        for level in range(self.num_nodes):
            best_B = self.output(states_BE).argmax(-1)
            tokens.append(best_B if self.output.ids_K is None else self.output.ids_K[best_B])
            if level + 1 < self.num_nodes:
                placement = place_next(self.cache, slots_B, lengths_B + counts_B + level, counts_B, limit)
                states_BE = self._states(tokens[-1][:, None], placement)[:, 0]
        return torch.stack(tokens, dim=1)

    def _states(self, tokens_BM: Tensor, placement: Placement) -> Tensor:
        """Output states [B, M, E]."""
        last = (self.decoder.spec.num_layers,)
        states_BME = self.decoder(tokens_BM, placement, self.cache, feature_layers=last, want_logits=False).features_BMF
        assert states_BME is not None
        return states_BME
