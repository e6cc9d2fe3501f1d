"""What a draft model has still to read: the committed tokens of each slot that are not in its cache.

The target commits tokens; a draft model with a cache of its own has read some of them while it drafted, and some not.
`PendingTokens` holds those it has not, in `tokens`; the last entry is the root. A proposal starts by reading them, so
the cache never holds a token that was not committed for longer than one step.

A prompt is read in one go. Steps without a draft let the pending tokens grow, which are then read in pieces that fit
the cache's tail.

Worked example: tail 8, 20 tokens pending, 3 of the tail's rows needed for more: pieces of 5, 5, 5, and the last 5 stay.

Shapes: B slots of the call, M rows of each, R rows of all, E hidden size, K columns of the output head.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.models.chain import GreedyChain
from outrider.models.output_head import OutputHead
from outrider.ops.graphs import default_graph_pool
from outrider.proposer import SessionPlan
from outrider.proposers.drafting.model_loop import ModelLoop
from outrider.sampling import SamplingParams
from outrider.target import Target, TargetSession
from outrider.targets.native import NativeSession

__all__ = ["PendingTokens", "Row", "open_model"]


class Row(NamedTuple):
    """A row of a call: the place of its slot in the call, and its number there."""

    place: int
    row: int


def open_model(model: Target, plan: SessionPlan, tail: int) -> TargetSession:
    """Open a draft model's own cache for a session, which is within its reach."""
    assert plan.max_positions <= model.spec.max_positions, "a session is opened within the model's reach"
    return model.open(model.plan(plan.max_slots, plan.max_positions, tail))


@final
class PendingTokens:
    """A draft model's cache, what it has not read, and each slot's sampling settings."""

    def __init__(self, model: TargetSession, output: OutputHead, device: torch.device) -> None:
        self.model = model
        self.output = output
        self.device = device
        self.tokens: dict[int, list[int]] = {}
        self.samplings: dict[int, SamplingParams] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams) -> None:
        """A prompt is pending; its last token is the root."""
        self.tokens[slot] = list(tokens)
        self.samplings[slot] = sampling

    def release(self, slot: int) -> None:
        self.model.cache.reset(slot)
        del self.tokens[slot], self.samplings[slot]

    def catch_up(self, slots: Sequence[int], num_more: int) -> None:
        """Read pending tokens until what is pending fits the tail together with `num_more` further rows."""
        piece = self.model.cache.plan.tail - num_more
        prompts = [slot for slot in slots if not self.model.cache.lengths[slot] and len(self.tokens[slot]) > 1]
        if prompts:
            self.model.prefill(prompts, [self.tokens[slot][:-1] for slot in prompts])
            self.tokens |= {slot: self.tokens[slot][-1:] for slot in prompts}
        for slot in slots:
            while len(self.tokens[slot]) > piece:
                self.states([slot], [self.tokens[slot][:piece]], [[]])
                self.tokens[slot] = self.tokens[slot][piece:]

    def read(self, slots: Sequence[int], feeds: Sequence[Sequence[int]]) -> Tensor:
        """Read each slot's tokens into the cache for good; logits after the last of them, [B, K]."""
        states_BME = self.states(slots, feeds, [[] for _ in slots])
        return self.logits(states_BME, [Row(place, len(feed) - 1) for place, feed in enumerate(feeds)])

    def states(self, slots: Sequence[int], feeds: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> Tensor:
        """Read each slot's tokens for good and `others` behind them for this once; states at all rows, [B, M, E]."""
        rows = [[*feed, *other] for feed, other in zip(feeds, others, strict=True)]
        chain = Draft.of_chains([row[1:] for row in rows], self.device)
        states_BME = self.model.states(slots, [row[0] for row in rows], chain)
        self.model.cache.extend(slots, [len(feed) for feed in feeds])
        return states_BME

    def logits(self, states_BME: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits [R, K] of the given rows alone; the others never meet the output head."""
        M = states_BME.shape[1]
        flat = [row.place * M + row.row for row in rows]
        states_RE = states_BME.flatten(0, 1)
        if flat != list(range(len(states_RE))):
            states_RE = states_RE[torch.tensor(flat, device=states_RE.device)]
        return self.output(states_RE)

    def chain(self, num_levels: int) -> GreedyChain | None:
        """Greedy chains drafted without Python between two tokens, where the model's back end can."""
        if not isinstance(self.model, NativeSession) or self.output.packed is None:
            return None
        draft_step = self.model.decoder.draft_step(self.model.cache, self.output.packed, self.output.ids_K)
        return None if draft_step is None else GreedyChain(draft_step, self.model.cache, num_levels)

    def loop(self, num_nodes: int) -> ModelLoop | None:
        """Greedy chains as one graph, on a GPU and where the model can be recorded."""
        graphs = default_graph_pool(self.device)
        if graphs is None or not isinstance(self.model, NativeSession) or self.output.packed is None:
            return None
        decoder = self.model.decoder
        if any(window is not None for window in decoder.spec.windows):
            return None
        return ModelLoop(decoder, self.output, self.model.cache, graphs, num_nodes)

    def embedded(self, feeds: Sequence[Sequence[int]]) -> Tensor:
        """The inputs [R, E] of a chain's first read."""
        assert isinstance(self.model, NativeSession), "other models have no chains"
        return self.model.decoder.embed(torch.tensor([token for feed in feeds for token in feed], device=self.device))

    def take_back(self, slot: int, count: int) -> None:
        """Forget the last `count` tokens that were read."""
        self.model.cache.truncate(slot, self.model.cache.lengths[slot] - count)

    def first_positions(self, slots: Sequence[int]) -> list[int]:
        """The text index of the token after the last one read, of each slot."""
        return self.model.cache.lengths_of(slots)

    @property
    def num_bytes(self) -> int:
        return self.model.cache.plan.num_bytes
