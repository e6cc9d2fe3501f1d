"""The session of every drafter that carries a state from token to token: EAGLE-3, MTP, and their like.

A head (`outrider.models.recurrent`) reads pairs of a state and the token after it. For committed text the state is the
target's; while drafting it is the head's own last output, which drifts from the target's. So nothing that was read
while drafting is kept: drafted entries lie behind the committed length of the head's cache, where the next read
overwrites them, and accepted positions are read again with the target's features.

    text x0 x1 x2 r     committed pairs (f0,x1) (f1,x2) (f2,r)       cache length 3, rotary positions 0 1 2
    draft               (h,a) at position 3, (h',b) at 4             drafted a b c: the last one is never read
    accepted a, bonus y                                              unread (f3,a) (f4,y), read by the next proposal

`observe` only appends to each slot's pending tokens; `propose` reads those of all slots in one call, and then drafts:
a chain (`chain.py`), a chain of masks that the same read holds (`masked_chain.py`), or a tree (`recurrent_tree.py`). A
slot without a pair (its prompt is a single token) gets no draft.

Shapes: B slots, M rows of each, T prompt tokens, F features.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from outrider.cache import Window
from outrider.draft import Draft, Tree
from outrider.models.recurrent import RecurrentHead
from outrider.ops.graphs import GraphPool, default_graph_pool
from outrider.proposer import Commit, DraftLimit, Kept, Reused, Session, SessionPlan
from outrider.proposers.drafting.chain import ChainDrafter
from outrider.proposers.drafting.head_reader import SHORT, HeadReader
from outrider.proposers.drafting.masked_chain import MaskedChains, MaskedPair
from outrider.proposers.drafting.recurrent_tree import Paths, draft_trees, num_tree_rows
from outrider.sampling import SamplingParams

__all__ = ["RecurrentSession", "rows_of"]


@final
class RecurrentSession(Session):
    """A recurrent head's cache and pending tokens, and how it drafts.

    Args:
        head: the weights; its `fuse` takes features in any dtype.
        plan: the session's sizes and noise.
        vocab_size: the target's.
        num_nodes: the most nodes of a draft.
        depth: the most levels of a draft; the smaller of both bounds a chain.
        width: 1 drafts a chain; above 1 a dynamic tree, where each level expands the `width` best nodes of the level
            before into `width` tokens each and the `num_nodes` best of all are kept.
        paths: instead of `width`, the fixed shape of a tree: ranks from the root, such as (0,), (1,), (0, 0).
        mask: draft chains in one pass, with this pair in the place of unknown ones.
        window: the positions of a text that the head reads; None for all.
        sampled: as `ChainDrafter` takes it.
        graphs: recordings of greedy chains; by default those of a GPU.
    """

    def __init__(
        self,
        head: RecurrentHead,
        plan: SessionPlan,
        *,
        vocab_size: int,
        num_nodes: int,
        depth: int,
        width: int = 1,
        paths: Paths | None = None,
        mask: MaskedPair | None = None,
        window: Window | None = None,
        sampled: bool | None = None,
        graphs: GraphPool | None = None,
    ) -> None:
        is_chain = width == 1 and paths is None
        assert is_chain or not sampled, "sampled drafts are chains"
        self.plan = plan
        self.num_nodes, self.depth, self.width, self.paths = num_nodes, depth, width, paths
        graphs = (graphs or default_graph_pool(plan.device)) if is_chain and not sampled and mask is None else None
        longest = min(num_nodes, depth)
        self.reader = HeadReader(
            head,
            plan,
            vocab_size=vocab_size,
            tail=max(SHORT, 2 * num_nodes + 1, num_tree_rows(width, depth, paths)) + (0 if mask is None else longest),
            num_nodes=longest,
            replays=graphs is None,
            window=window,
        )
        self.chains: ChainDrafter | MaskedChains | None = None
        if mask is not None:
            self.chains = MaskedChains(self.reader, plan, mask, sampled=bool(sampled))
        elif is_chain:
            self.chains = ChainDrafter(self.reader, plan, longest, sampled=sampled, graphs=graphs)

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        assert features_TF is not None, "the target was opened without feature layers"
        self.reader.admit(slot, tokens, sampling, features_TF)

    def keep(self, slot: int) -> Kept:
        return self.reader.kept(slot)

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        assert features_TF is not None, "the session has feature layers"
        self.reader.reuse(slot, tokens, sampling, features_TF, reused)

    def num_pending(self, slot: int) -> int:
        return self.reader.num_pending(slot)

    def catch_up(self, slots: Sequence[int]) -> None:
        self.reader.catch_up(slots, 1)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        within = {
            slot: DraftLimit(min(limit.num_nodes, self.num_nodes), min(limit.max_depth, self.depth))
            for slot, limit in zip(slots, limits, strict=True)
        }
        if self.chains is not None:
            return self.chains.draft(slots, {slot: min(limit) for slot, limit in within.items()})
        growing = self.reader.ready([slot for slot, limit in within.items() if min(limit) > 0])
        trees = self._trees({slot: within[slot] for slot in growing}) if growing else {}
        return Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots], self.plan.device)

    def _trees(self, limits: dict[int, DraftLimit]) -> dict[int, Tree]:
        reader, start = self.reader, self.reader.start(list(limits))
        return draft_trees(reader.head, reader.cache, start, limits, self.width, self.paths, reader.graph_cache)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        assert features_BMF is not None, "the target was opened without feature layers"
        for slot, rows, tokens, place in commits:
            self.reader.pending[slot].add(rows_of(features_BMF[place], rows[: len(tokens)]), tokens)

    def release(self, slot: int) -> None:
        self.reader.release(slot)

    @property
    def num_bytes(self) -> int:
        return self.reader.cache.plan.num_bytes


def rows_of(features_MF: Tensor, rows: Sequence[int]) -> Tensor:
    """Return the given rows; of a chain, whose rows follow each other, without a copy."""
    if all(row == place for place, row in enumerate(rows)):
        return features_MF[: len(rows)]
    return features_MF[torch.tensor(rows, device=features_MF.device)]
