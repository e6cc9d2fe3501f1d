"""The whole chain draft of a recurrent head as one graph: the pending tokens, and every drafted token.

Drafting k tokens is a read of what was accepted, then k - 1 reads of one row, with an output head and an argmax between
them. Each is short, so on a GPU launching them one by one takes longer than they do. Their shapes are fixed by the most
pairs that a step can commit, P = k + 1, and by k, so all of it fits into one graph per number of slots: one copy to
the device brings slots, lengths, counts and tokens, one replay drafts, and the drafted tokens stay on the device.

    slots 2, k = 2: pairs [2, 3] padded to P = 3, counts [1, 3]
    read 2 x 3 rows -> state behind each slot's last pair -> d1 -> read 2 x 1 rows -> d2

A slot that may draft fewer than k tokens drafts k, and the draft says how many are real.

Shapes: B slots, P pairs of a slot, N drafted tokens, E hidden size, F features, K output columns.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.models.recurrent import RecurrentHead
from outrider.ops.graph_buckets import bucket
from outrider.ops.graphs import Graph, GraphPool
from outrider.proposers.drafting.recorded import LEAST_LIMIT, packed, place_next, place_pending
from outrider.targets.static import upload

__all__ = ["ChainLoop", "Pairs"]


class Pairs(NamedTuple):
    """What one slot has not read, at most P pairs: features [T, F], in parts, and the token after each."""

    slot: int
    features: list[Tensor]
    tokens: list[int]


class _Buffers(NamedTuple):
    """What a graph reads: slots, lengths and counts [B] and tokens [B, P] in one tensor, and features."""

    numbers: Tensor
    features_BPF: Tensor
    graph: Graph[Tensor]


@final
class ChainLoop:
    """Greedy chains of `num_nodes` tokens for all slots of a batch.

    Args:
        cache: the head's; its tail has room for `num_pairs + num_nodes` rows.
        graphs: where the loop is recorded.
    """

    def __init__(self, head: RecurrentHead, cache: KVCache, graphs: GraphPool, num_nodes: int) -> None:
        assert cache.plan.tail >= 2 * num_nodes + 1, "the tail is too short for pending tokens and a draft"
        self.head = head
        self.cache = cache
        self.graphs = graphs
        self.num_nodes = num_nodes
        self.num_pairs = num_nodes + 1
        self._buffers: dict[tuple[int, int, int], _Buffers] = {}

    def draft(self, pending: Sequence[Pairs]) -> Tensor:
        """Read these pairs for good and draft behind them: tokens [B, N] on the device, valid until the next call."""
        counts = [len(pairs.tokens) for pairs in pending]
        assert counts, "nothing to read"
        assert 0 < min(counts) <= max(counts) <= self.num_pairs, f"{counts} pairs for a loop of {self.num_pairs}"
        slots = [pairs.slot for pairs in pending]
        lengths = self.cache.lengths_of(slots)
        limit = bucket(max(LEAST_LIMIT, max(lengths) + self.num_pairs + self.num_nodes))
        buffers = self._recorded(bucket(len(slots)), limit, pending[0].features[0])
        numbers = packed(slots, lengths, [pairs.tokens for pairs in pending], self.num_pairs)
        buffers.numbers.copy_(upload(numbers, self.cache.device))
        self._copy_features(buffers.features_BPF, pending)
        buffers.graph.replay()
        self.cache.extend(slots, counts)
        return buffers.graph.result[: len(slots)]

    def _copy_features(self, features_BPF: Tensor, pending: Sequence[Pairs]) -> None:
        goals, sources = [], []
        for features_PF, pairs in zip(features_BPF, pending, strict=False):
            start = 0
            for part_TF in pairs.features:
                goals.append(features_PF[start : start + len(part_TF)])
                sources.append(part_TF)
                start += len(part_TF)
        torch._foreach_copy_(goals, sources)

    def _recorded(self, B: int, limit: int, like_TF: Tensor) -> _Buffers:
        key = (B, limit, like_TF.shape[1])
        if key not in self._buffers:
            numbers = torch.zeros(B, 3 + self.num_pairs, dtype=torch.int64, device=self.cache.device)
            features_BPF = like_TF.new_zeros(B, self.num_pairs, like_TF.shape[1])
            graph = self.graphs.record(lambda: self._loop(numbers, features_BPF, limit))
            self._buffers[key] = _Buffers(numbers, features_BPF, graph)
        return self._buffers[key]

    @torch.inference_mode()
    def _loop(self, numbers: Tensor, features_BPF: Tensor, limit: int) -> Tensor:
        slots_B, lengths_B, counts_B = (numbers[:, column].contiguous() for column in range(3))
        first = place_pending(self.cache, slots_B, lengths_B, counts_B, self.num_pairs, limit)
        states_RE = self.head.fuse(features_BPF.flatten(0, 1))
        states_RE = self.head.read(states_RE, numbers[:, 3:].flatten(), first, self.cache).states_RE
        rows_B = torch.arange(len(slots_B), device=slots_B.device)
        states_BE = states_RE.view(len(slots_B), self.num_pairs, -1)[rows_B, (counts_B - 1).clamp(min=0)]
        logits_BK: Tensor | None = self.head.predict(states_BE)
        tokens: list[Tensor] = []
        for level in range(self.num_nodes):
            assert logits_BK is not None
            best_B = logits_BK.argmax(-1)
            tokens.append(best_B if self.head.ids_K is None else self.head.ids_K[best_B])
            if level + 1 < self.num_nodes:
                placement = place_next(self.cache, slots_B, lengths_B + counts_B + level, counts_B, limit)
                states_BE, logits_BK = self.head.read(
                    states_BE, tokens[-1], placement, self.cache, num_predicted=len(slots_B)
                )
        return torch.stack(tokens, dim=1)
