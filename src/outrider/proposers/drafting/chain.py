"""The one place where a chain is drafted token by token, for every network that reads its own tokens.

A proposal reads what was committed since the last one, predicts, chooses, reads the chosen token, predicts, and so on:

    pending [c r]   read c r -> d1   read d1 -> d2   read d2 -> d3          d3 is not read

`ChainDrafter` runs this by the fastest of three back ends, which give the same tokens:

    recorded    greedy, on a GPU: one graph for all of it, and the tokens stay on the device   `recorded_chain.py`
    fused       on the CPU, greedy or drawn with the target's noise: one or two recorded runs   `fused_chain.py`
    stepwise    anything else: one read per token, from Python                                  here

Recorded and fused chains give every slot the longest chain of the batch and cut it; stepwise, a finished slot is left
out. What a session keeps for each slot stands behind the seam `ChainReader`.

Shapes: B slots that still grow, N tokens, E hidden size of the network.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.draft import Draft
from outrider.models.draft_network import DraftNetwork, Reading
from outrider.noise import Stream, chain_law
from outrider.ops.graphs import GraphPool
from outrider.proposer import SessionPlan
from outrider.proposers.drafting.fused_chain import FusedChain
from outrider.proposers.drafting.pending import Pending
from outrider.proposers.drafting.recorded_chain import RecordedChain
from outrider.proposers.drafting.sampler import ChainSampler
from outrider.sampling import SamplingParams

__all__ = ["ChainDrafter", "ChainReader"]


class ChainReader(ABC):
    """A drafter's network on its own cache, and the pending tokens of each slot.

    cache           keys and values of what was read
    network         the network of recorded and fused chains; None if only this reader can run it
    ids_K           target ids of the columns of its logits; None if column k is token k
    vocab_size      the target's
    samplings       each slot's sampling settings
    max_recorded    the most pending tokens of a slot in a recorded chain
    reads_idle      slots that draft nothing read their pending tokens in the recorded chain of the others
    """

    cache: KVCache
    network: DraftNetwork | None
    ids_K: Tensor | None
    vocab_size: int
    samplings: dict[int, SamplingParams]
    max_recorded: int
    reads_idle: bool

    @abstractmethod
    def num_pending(self, slot: int) -> int:
        """Count the committed tokens of a slot that were not read."""

    @abstractmethod
    def ready(self, slots: Sequence[int]) -> list[int]:
        """Select the slots that can draft: a head cannot before it has the target's features."""

    @abstractmethod
    def take(self, slots: Sequence[int], most: int | None = None) -> dict[int, Pending]:
        """Remove and return the pending tokens of each slot, at most `most`; earlier ones are read first.

        By default, as many as one read of several slots takes.
        """

    @abstractmethod
    def keep(self, feeds: Mapping[int, Pending], depths: Mapping[int, int], states_BE: Tensor | None) -> None:
        """Record that a chain of `depths[slot]` tokens was drafted behind these pending tokens.

        Args:
            states_BE: the network's states behind the pending tokens, if known.
        """

    @abstractmethod
    def start(self, slots: Sequence[int]) -> Reading:
        """Read the pending tokens, and return states and logits behind each slot's last."""

    @abstractmethod
    def advance(self, slots: Sequence[int], states_BE: Tensor, tokens_B: Tensor, level: int) -> Reading:
        """Read the token that was drafted last, number `level` of the chain, behind these states."""

    @abstractmethod
    def text_lengths(self, slots: Sequence[int]) -> list[int]:
        """Count each slot's committed tokens, after `start`: the position of the first drafted token."""


@final
class ChainDrafter:
    """The chains of one session.

    Args:
        num_nodes: the longest chain.
        sampled: True draws the tokens with each slot's sampling settings, False takes the most probable ones; None
            draws where that costs no more: fused, under the coupled rule, without the filters.
        graphs: recordings of greedy chains; None for no such back end.
    """

    def __init__(
        self, reader: ChainReader, plan: SessionPlan, num_nodes: int, *, sampled: bool | None, graphs: GraphPool | None
    ) -> None:
        self.reader = reader
        self.plan = plan
        shares_noise = plan.noise is Stream.TARGET
        self.recorded: RecordedChain | None = None
        if reader.network is not None and graphs is not None and not sampled:
            self.recorded = RecordedChain(reader.network, reader.cache, graphs, num_nodes, reader.max_recorded)
        network = None if self.recorded is not None or (sampled and not shares_noise) else reader.network
        self.fused = FusedChain.of(network, reader.cache, num_nodes)
        self.filtered = bool(sampled)
        self.sampled = bool(sampled) or (sampled is None and shares_noise and self.fused is not None)

    def draft(self, slots: Sequence[int], depths: Mapping[int, int]) -> Draft:
        """Draft a chain of `depths[slot]` tokens for each slot; none where the reader is not ready."""
        limits = {slot: depths[slot] for slot in self.reader.ready([slot for slot in slots if depths[slot] > 0])}
        pending = {slot: depth for slot, depth in limits.items() if self.reader.num_pending(slot)}
        if self.recorded is not None and pending:
            return self._recorded(self.recorded, slots, pending)
        if self.recorded is not None or not limits:
            return Draft.empty(len(slots), self.plan.device)
        settings = self._settings_of(limits)
        if self.fused is not None and len(pending) == len(limits) and settings is not None:
            return self._fused(self.fused, slots, limits, settings)
        return self._stepwise(slots, limits)  # also where a slot proposes again without having read anything new

    def _recorded(self, recorded: RecordedChain, slots: Sequence[int], depths: Mapping[int, int]) -> Draft:
        """Draft from one graph; the tokens stay on the device."""
        reading = [
            slot for slot in slots if depths.get(slot) or (self.reader.reads_idle and self.reader.num_pending(slot))
        ]
        feeds = self.reader.take(reading, recorded.num_rows)
        tokens_BN = _in_their_places(slots, reading, recorded.draft(feeds))
        self.reader.keep(feeds, depths, None)
        return Draft.on_device(tokens_BN[:, : max(depths.values())], [depths.get(slot, 0) for slot in slots])

    def _settings_of(self, slots: Iterable[int]) -> list[SamplingParams] | None:
        """Return the settings that tokens are drawn by, empty if all are greedy; None if they need the filters."""
        settings = [self.reader.samplings[slot] for slot in slots] if self.sampled else []
        if self.filtered and any(one.filters for one in settings):
            return None
        return [] if all(one.greedy for one in settings) else settings

    def _fused(
        self, fused: FusedChain, slots: Sequence[int], depths: Mapping[int, int], settings: Sequence[SamplingParams]
    ) -> Draft:
        """Draft without Python between two tokens."""
        feeds = self.reader.take(list(depths))
        lengths = self.reader.text_lengths(list(feeds)) if settings else []
        laws = [
            chain_law(one.temperature, one.seed, length + len(feed.tokens))
            for one, length, feed in zip(settings, lengths, feeds.values(), strict=False)
        ]
        chosen = fused.draft(feeds, max(depths.values()), laws or None)
        self.reader.keep(feeds, depths, chosen.next_RE[len(feeds) :])
        tokens = dict(zip(depths, chosen.tokens_LN.T.tolist(), strict=True))
        return Draft.of_chains(
            [tokens[slot][: depths[slot]] if slot in depths else [] for slot in slots], self.plan.device
        )

    def _stepwise(self, slots: Sequence[int], depths: Mapping[int, int]) -> Draft:
        """Draft level by level; a slot with a smaller limit than others is left out when it is reached."""
        reader, active = self.reader, list(depths)
        sampler = ChainSampler(
            self.plan, slots, reader.samplings, sampled=self.sampled, vocab_size=reader.vocab_size, ids_K=reader.ids_K
        )
        states_BE, logits_BK = reader.start(active)
        # The noise of a drafted token is keyed by its text position.
        firsts = dict(zip(active, reader.text_lengths(active), strict=True))
        for level in range(1, 1 + max(depths.values())):
            assert logits_BK is not None, "every row of a chain is predicted from"
            tokens_B = sampler.grow(active, logits_BK, [firsts[slot] for slot in active])
            going = [place for place, slot in enumerate(active) if level < depths[slot]]
            if not going:
                break
            if len(going) < len(active):
                active, states_BE, tokens_B = [active[place] for place in going], states_BE[going], tokens_B[going]
            states_BE, logits_BK = reader.advance(active, states_BE, tokens_B, level)
        return sampler.draft()


def _in_their_places(slots: Sequence[int], active: Sequence[int], tokens_BN: Tensor) -> Tensor:
    """Spread the tokens of the active slots over all slots; the others have zeros."""
    if len(active) == len(slots):
        return tokens_BN
    places = torch.tensor([list(slots).index(slot) for slot in active], device=tokens_BN.device)
    return tokens_BN.new_zeros(len(slots), tokens_BN.shape[1]).index_copy(0, places, tokens_BN)
