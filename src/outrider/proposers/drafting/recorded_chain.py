"""Greedy chains of a whole batch as one recorded graph: the pending tokens, and every drafted token.

Drafting k tokens is a read of what was committed, then k - 1 reads of one row, with an output head and an argmax
between them. On a GPU, launching them takes longer than running them. The most pending tokens of a slot, P, and k fix
their shapes, so all of it is one graph per bucket of slots. One tensor is uploaded each step; the tokens stay on the
device.

    slot, length, dropped, count, tokens    2, 9, 0, 1, [7, 0]    slot 2 has read 9 tokens, reads a 7

    slots 2, k = 2: pending [2, 3] padded to P = 3, counts [1, 3]
    read 2 x 3 rows -> state behind each slot's last token -> d1 -> read 2 x 1 rows -> d2

Padding rows see nothing and are written to the cache's trash position. A slot that may draft fewer than k tokens
drafts k, and the draft says how many are real.

Shapes: B slots, P pending tokens of a slot, N drafted tokens, E hidden size, F features, K output columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.draft_network import DraftNetwork
from outrider.ops.graph_buckets import bucket
from outrider.ops.graphs import Graph, GraphPool
from outrider.placement import place_next, place_pending, upload
from outrider.proposers.drafting.pending import Pending

__all__ = ["RecordedChain"]

LEAST_LIMIT = 1024
NO_FEATURES = torch.empty(0, 0)


class _Recorded(NamedTuple):
    """A graph, and the buffers it reads: slots, lengths, dropped, counts [B] and tokens [B, P] as one, and features."""

    numbers: Tensor
    features_BPF: Tensor
    graph: Graph[Tensor]


@final
class RecordedChain:
    """Greedy chains of `num_nodes` tokens for all slots of a batch.

    Args:
        cache: the network's; its tail holds `num_rows + num_nodes` rows.
        graphs: recordings on the cache's device.
        num_rows: P, the most pending tokens of a slot.
    """

    def __init__(self, network: DraftNetwork, cache: KVCache, graphs: GraphPool, num_nodes: int, num_rows: int) -> None:
        assert cache.plan.tail >= num_rows + num_nodes, "the tail is too short for pending tokens and a draft"
        self.network = network
        self.cache = cache
        self.graphs = graphs
        self.num_nodes = num_nodes
        self.num_rows = num_rows
        self._recorded: dict[tuple[int, int, int], _Recorded] = {}

    def draft(self, feeds: Mapping[int, Pending]) -> Tensor:
        """Read each slot's tokens and draft behind them: tokens [B, N] on the device, valid until the next call.

        The cache's lengths stay.
        """
        counts = [len(feed.tokens) for feed in feeds.values()]
        assert 0 < min(counts) <= max(counts) <= self.num_rows, f"{counts} pending tokens, of 1 to {self.num_rows}"
        lengths = self.cache.lengths_of(list(feeds))
        # The graph reads that many cache positions, so a longer text needs another graph.
        limit = bucket(max(LEAST_LIMIT, max(lengths) + self.num_rows + self.num_nodes))
        limit = min(limit, self.cache.plan.num_positions)
        like_TF = next((part for feed in feeds.values() for part in feed.features), NO_FEATURES)
        recorded = self._recorded_for(bucket(len(feeds)), limit, like_TF)
        recorded.numbers.copy_(upload(self._packed(feeds, lengths), self.cache.device))
        if like_TF.shape[1]:
            _copy_features(recorded.features_BPF, feeds)
        recorded.graph.replay()
        return recorded.graph.result[: len(feeds)]

    def _packed(self, feeds: Mapping[int, Pending], lengths: Sequence[int]) -> np.ndarray:
        """Pack int64 [B, 4 + P] for a bucket of slots; those that are padding have count 0."""
        numbers = np.zeros((bucket(len(feeds)), 4 + self.num_rows), np.int64)
        for row, ((slot, feed), length) in enumerate(zip(feeds.items(), lengths, strict=True)):
            dropped = self.cache.dropped[slot]
            numbers[row, : 4 + len(feed.tokens)] = [slot, length, dropped, len(feed.tokens), *feed.tokens]
        return numbers

    def _recorded_for(self, B: int, limit: int, like_TF: Tensor) -> _Recorded:
        key = (B, limit, like_TF.shape[1])
        if key not in self._recorded:
            device = self.cache.device
            numbers = torch.zeros(B, 4 + self.num_rows, dtype=torch.int64, device=device)
            features_BPF = like_TF.new_zeros(B, self.num_rows, like_TF.shape[1], device=device)
            graph = self.graphs.record(lambda: self._chain(numbers, features_BPF, limit))
            self._recorded[key] = _Recorded(numbers, features_BPF, graph)
        return self._recorded[key]

    @torch.inference_mode()
    def _chain(self, numbers: Tensor, features_BPF: Tensor, limit: int) -> Tensor:
        network, cache = self.network, self.cache
        slots_B, lengths_B, dropped_B, counts_B = (numbers[:, column].contiguous() for column in range(4))
        B, rows_B = len(slots_B), torch.arange(len(slots_B), device=slots_B.device)
        first = place_pending(cache, slots_B, lengths_B, dropped_B, counts_B, self.num_rows, limit)
        states_RE = network.fuse(features_BPF.flatten(0, 1))
        states_RE = network.read(states_RE, numbers[:, 4:].flatten(), first, cache).states_RE
        # Padding slots have count 0; their row 0 is as good as any.
        states_BE = states_RE.view(B, self.num_rows, -1)[rows_B, (counts_B - 1).clamp(min=0)]
        logits_BK: Tensor | None = network.predict(states_BE)
        tokens: list[Tensor] = []
        for level in range(self.num_nodes):
            assert logits_BK is not None
            best_B = logits_BK.argmax(-1)
            tokens.append(best_B if network.ids_K is None else network.ids_K[best_B])
            if level + 1 < self.num_nodes:
                placement = place_next(cache, slots_B, lengths_B + counts_B + level, dropped_B, counts_B, limit)
                states_BE, logits_BK = network.read(states_BE, tokens[-1], placement, cache, num_predicted=B)
        return torch.stack(tokens, dim=1)


def _copy_features(features_BPF: Tensor, feeds: Mapping[int, Pending]) -> None:
    goals, sources = [], []
    for features_PF, feed in zip(features_BPF, feeds.values(), strict=False):
        start = 0
        for part_TF in feed.features:
            goals.append(features_PF[start : start + len(part_TF)])
            sources.append(part_TF)
            start += len(part_TF)
    torch._foreach_copy_(goals, sources)
