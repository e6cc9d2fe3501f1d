"""The session of every drafter that carries a state from token to token: EAGLE-3, MTP, and their like.

A head (`outrider.models.recurrent`) reads pairs of a state and the token after it. For committed text the state is the
target's; while drafting it is the head's own last output, which drifts from what the target would have said. So nothing
that was read while drafting is kept: drafted entries lie behind the committed length of the head's cache, where the
next read overwrites them, and accepted positions are read again with the target's features.

    text x0 x1 x2 r     committed pairs (f0,x1) (f1,x2) (f2,r)       cache length 3, rotary positions 0 1 2
    draft               (h,a) at position 3, (h',b) at 4             drafted a b c: the last one is never read
    accepted a, bonus y                                              unread (f3,a) (f4,y), read by the next proposal

`observe` only appends to each slot's pending tokens; `propose` reads what all slots lack in one call, however many
pairs each of them has, and then drafts: a chain (`chains.py`), or a tree (`recurrent_tree.py`). A slot that has not one
pair, a request whose prompt is a single token, gets no draft in its first step.

Shapes: B slots, R rows of a read, T tail positions, E hidden size of the head, F features, K output columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.draft import Draft, Tree
from outrider.models.chain import GreedyChain
from outrider.models.recurrent import Reading, RecurrentHead
from outrider.ops.base import GraphCache
from outrider.ops.graphs import GraphPool, default_graph_pool
from outrider.placement import Placement
from outrider.proposer import Commit, DraftLimit, Session, SessionPlan
from outrider.proposers.drafting.chains import Chains
from outrider.proposers.drafting.recorded import in_their_places
from outrider.proposers.drafting.recurrent_loop import ChainLoop, Pairs
from outrider.proposers.drafting.recurrent_tree import Paths, draft_trees, num_tree_rows
from outrider.sampling import SamplingParams

__all__ = ["PendingPairs", "RecurrentSession"]

SHORT = 32
"""Up to this many pending pairs of each slot share one read; longer ones (prompts) are read slot by slot."""
PIECE = 256
"""Rows of one read of many pending tokens."""


@final
@dataclass(eq=False)
class PendingPairs:
    """The pairs of one slot that the head has not read: features, in parts, and the tokens that follow them."""

    features: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, features_TF: Tensor, tokens: Sequence[int]) -> None:
        assert len(features_TF) == len(tokens), f"{len(features_TF)} features for {len(tokens)} tokens"
        if tokens:
            self.features.append(features_TF)
            self.tokens += tokens

    def take(self, count: int) -> "PendingPairs":
        """Remove the first `count` pairs and give them."""
        if count >= len(self.tokens):
            taken = PendingPairs(self.features, self.tokens)
            self.features, self.tokens = [], []
            return taken
        features_TF = torch.cat(self.features)
        taken = PendingPairs([features_TF[:count]], self.tokens[:count])
        self.features, self.tokens = [features_TF[count:]], self.tokens[count:]
        return taken


class _Inputs(NamedTuple):
    """What a read of some slots' pairs takes, and how many pairs each of them has."""

    counts: list[int]
    states_RE: Tensor
    tokens_R: Tensor
    placement: Placement


@final
class RecurrentSession(Session):
    """A recurrent head's cache, and what it has still to read.

    Args:
        head: the weights; its `fuse` takes features in any dtype.
        plan: what the proposer was opened for.
        vocab_size: the target's.
        num_nodes: the most nodes of a draft.
        depth: the most levels of a draft; the smaller of both bounds a chain.
        width: 1 drafts a chain; above 1 a dynamic tree, where each level expands the `width` best nodes of the level
            before into `width` tokens each and the `num_nodes` best of all are kept.
        paths: instead of `width`, the fixed shape of a tree: ranks from the root, such as (0,), (1,), (0, 0).
        sampled: draw chains with each request's sampling settings instead of taking the most probable token.
        graphs: where greedy chains are drafted from graphs (`recurrent_loop.py`); by default on a GPU.
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
        sampled: bool = False,
        graphs: GraphPool | None = None,
    ) -> None:
        assert not sampled or (width == 1 and paths is None), "sampled drafts are chains"
        self.head = head
        self.plan = plan
        self.vocab_size = vocab_size
        self.num_nodes, self.depth, self.width, self.paths, self.sampled = num_nodes, depth, width, paths, sampled
        tail = max(SHORT, 2 * num_nodes + 1, num_tree_rows(width, depth, paths))
        self.cache = KVCache(head.plan(plan.max_slots, plan.max_positions, tail), plan.device)
        self.graph_cache = GraphCache()
        graphs = graphs or default_graph_pool(plan.device)
        is_greedy_chain = width == 1 and paths is None and not sampled
        loop = None if graphs is None else ChainLoop(head, self.cache, graphs, min(num_nodes, depth))
        self.loop = loop if is_greedy_chain else None
        draft_step = head.draft_step(self.cache) if is_greedy_chain and plan.device.type == "cpu" else None
        self.chain = None if draft_step is None else GreedyChain(draft_step, self.cache, min(num_nodes, depth))
        self.pending: dict[int, PendingPairs] = {}
        self.samplings: dict[int, SamplingParams] = {}
        self.states: dict[int, Tensor] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        assert features_TF is not None, "the target was opened without feature layers"
        self.pending[slot] = PendingPairs()
        self.pending[slot].add(features_TF, list(tokens[1:]))
        self.samplings[slot] = sampling

    def num_pending(self, slot: int) -> int:
        return len(self.pending[slot].tokens)

    def catch_up(self, slots: Sequence[int]) -> None:
        self._shorten(slots, 1)

    def _shorten(self, slots: Sequence[int], most: int) -> None:
        """Read pending pairs until none has more than `most` pairs."""
        for slot in slots:
            pairs = self.pending[slot]
            while len(pairs.tokens) > most:
                self._read({slot: pairs.take(min(PIECE, len(pairs.tokens) - 1))}, num_predicted=0)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        within = [
            DraftLimit(min(limit.num_nodes, self.num_nodes), min(limit.max_depth, self.depth)) for limit in limits
        ]
        if self.loop is not None:
            return self._recorded_chains(self.loop, slots, [min(limit) for limit in within])
        growing = {slot: limit for slot, limit in zip(slots, within, strict=True) if min(limit) > 0}
        again = [slot for slot in growing if slot in self.states and not self.pending[slot].tokens]
        if self.chain is not None and not again:
            return self._chains_in_one_go(self.chain, slots, {slot: min(limit) for slot, limit in growing.items()})
        logits_BK = self._catch_up(list(growing))
        growing = {slot: limit for slot, limit in growing.items() if slot in self.states}
        if not growing:
            return Draft.empty(len(slots), self.plan.device)
        states_BE = torch.stack([self.states[slot] for slot in growing])
        start = Reading(states_BE, self.head.predict(states_BE) if logits_BK is None else logits_BK)
        if self.width == 1 and self.paths is None:
            return self._chains(slots, {slot: min(limit) for slot, limit in growing.items()}, start)
        trees = draft_trees(self.head, self.cache, start, growing, self.width, self.paths, self.graph_cache)
        return Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots], self.plan.device)

    def _recorded_chains(self, loop: ChainLoop, slots: Sequence[int], depths: Sequence[int]) -> Draft:
        """Chains by the loop, for every slot that has a pair; their tokens stay on the device."""
        pending = {slot: self.pending[slot] for slot in slots if self.pending[slot].tokens}
        counts = [depth if slot in pending else 0 for slot, depth in zip(slots, depths, strict=True)]
        if max(counts) == 0:
            return Draft.empty(len(slots), self.plan.device)
        self._shorten(list(pending), loop.num_pairs)
        taken = [(slot, pairs.take(loop.num_pairs)) for slot, pairs in pending.items()]
        tokens_BN = loop.draft([Pairs(slot, some.features, some.tokens) for slot, some in taken])
        tokens_BN = in_their_places(slots, [slot for slot, _ in taken], tokens_BN)
        return Draft.on_device(tokens_BN[:, : max(counts)], counts)

    def _chains_in_one_go(self, chain: GreedyChain, slots: Sequence[int], depths: dict[int, int]) -> Draft:
        """As `_catch_up` and `_chains`, for greedy ones. A slot with a smaller limit than others is read on, and then
        cut."""
        active = [slot for slot in depths if self.pending[slot].tokens]
        if not active:
            return Draft.empty(len(slots), self.plan.device)
        self._shorten(active, SHORT)
        num_levels = max(depths[slot] for slot in active)
        counts, states_RE, tokens_R, placement = self._inputs(
            {slot: self.pending[slot].take(SHORT) for slot in active}, num_ahead=num_levels
        )
        both_RE = self.head.inputs(states_RE, tokens_R, placement)
        choice = chain.draft(both_RE, placement, active, counts, num_levels)
        self.cache.extend(active, counts)
        self.states |= zip(active, choice.next_RE[len(active) :], strict=True)
        tokens = dict(zip(active, choice.tokens_LN.T.tolist(), strict=True))
        return Draft.of_chains([tokens.get(slot, [])[: depths.get(slot, 0)] for slot in slots], self.plan.device)

    def _catch_up(self, slots: Sequence[int]) -> Tensor | None:
        """Read what these slots lack, and keep the state behind each slot's last pair; logits if it is one slot."""
        self._shorten(slots, SHORT)
        unread = {slot: self.pending[slot].take(SHORT) for slot in slots if self.pending[slot].tokens}
        return self._read(unread, num_predicted=1 if len(slots) == 1 else 0) if unread else None

    def _inputs(self, pairs: dict[int, PendingPairs], num_ahead: int = 0) -> _Inputs:
        counts = [len(some.tokens) for some in pairs.values()]
        features = [part for some in pairs.values() for part in some.features]
        return _Inputs(
            counts,
            self.head.fuse(features[0] if len(features) == 1 else torch.cat(features)),
            torch.tensor([token for some in pairs.values() for token in some.tokens], device=self.plan.device),
            self.cache.place_tokens(list(pairs), counts, num_ahead=num_ahead),
        )

    def _read(self, pairs: dict[int, PendingPairs], num_predicted: int) -> Tensor | None:
        """Read pairs for good; logits of the last rows, if any are wanted."""
        slots, (counts, states_RE, tokens_R, placement) = list(pairs), self._inputs(pairs)
        out_RE, logits_NK = self.head.read(
            states_RE,
            tokens_R,
            placement,
            self.cache,
            num_predicted=num_predicted,
            graph_cache=self.graph_cache if self.loop is None else None,
        )
        self.cache.extend(slots, counts)
        end = 0
        for slot, count in zip(slots, counts, strict=True):
            end += count
            self.states[slot] = out_RE[end - 1]
        return logits_NK

    def _chains(self, slots: Sequence[int], depths: dict[int, int], start: Reading) -> Draft:
        """Grow chains from the states and logits behind the roots of the slots of `depths`."""
        chains = Chains(
            self.plan,
            slots,
            self.samplings,
            sampled=self.sampled,
            vocab_size=self.vocab_size,
            ids_K=self.head.ids_K,
        )
        active, (states_BE, logits_BK) = list(depths), start
        for level in range(1, 1 + max(depths.values())):
            assert logits_BK is not None, "every row of a chain is predicted from"
            firsts = [length + 1 for length in self.cache.lengths_of(active)]
            tokens_B = chains.grow(active, logits_BK, firsts)
            going = [place for place, slot in enumerate(active) if level < depths[slot]]
            if not going:
                break
            if len(going) < len(active):
                active, states_BE, tokens_B = [active[place] for place in going], states_BE[going], tokens_B[going]
            states_BE, logits_BK = self.head.read(
                states_BE,
                tokens_B,
                self.cache.place_tokens(active, [1] * len(active), [level - 1] * len(active)),
                self.cache,
                num_predicted=len(active),
                graph_cache=self.graph_cache,
            )
        return chains.draft()

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        assert features_BMF is not None, "the target was opened without feature layers"
        for slot, rows, tokens, place in commits:
            self.pending[slot].add(rows_of(features_BMF[place], rows[: len(tokens)]), tokens)

    def release(self, slot: int) -> None:
        self.cache.reset(slot)
        del self.pending[slot], self.samplings[slot]
        self.states.pop(slot, None)

    @property
    def num_bytes(self) -> int:
        return self.cache.plan.num_bytes


def rows_of(features_MF: Tensor, rows: Sequence[int]) -> Tensor:
    """The given rows; of a chain, whose rows follow each other, without a copy."""
    if all(row == place for place, row in enumerate(rows)):
        return features_MF[: len(rows)]
    return features_MF[torch.tensor(rows, device=features_MF.device)]
