"""A draft model's own cache, and the committed tokens that it has not read.

The target commits tokens; the draft model has read some of them while it drafted, and some not. `tokens` holds those it
has not; the last entry is the root. A proposal starts by reading them, so the cache never holds a token that was not
committed for longer than one step.

    committed ... r      tokens [r]           drafts a b c, having read r a b
    accepted a b c, bonus d                   tokens [c, d]
    accepted a, bonus x                       cache truncated behind a, tokens [x]

A prompt, or the rest of one whose beginning is known, is read by one prefill. Pending tokens grow over steps without a
draft, and are then read in pieces that fit the cache's tail, or as a prompt where they are many.

Worked example: tail 8, 20 tokens pending, 3 of the tail's rows needed for more: pieces of 5, 5, 5, and the last 5 stay.

Shapes: B slots of the call, M rows of each, R rows of all, E hidden size, K columns of the output head.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.models.draft_decoder import DraftDecoder
from outrider.models.draft_network import Reading
from outrider.models.output_head import OutputHead
from outrider.proposer import Kept, Reused, SessionPlan
from outrider.proposers.drafting.chain import ChainReader
from outrider.proposers.drafting.pending import Pending
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["ModelReader", "Row"]


MANY = 32
"""More pending tokens than so many are read as a prompt is."""


class Row(NamedTuple):
    """A row of a call: the place of its slot in the call, and its number there."""

    place: int
    row: int


@final
class ModelReader(ChainReader):
    """The reader of a draft model.

    Args:
        output: the model's output head, or some rows of it.
        plan: within the model's reach.
        tail: rows that are read in one call, at most.
        num_more: rows among them that a proposal needs beside the pending tokens.
    """

    max_recorded = 2  # the last drafted token and the bonus
    reads_idle = False

    def __init__(self, model: Target, output: OutputHead, plan: SessionPlan, tail: int, num_more: int = 1) -> None:
        assert plan.max_positions <= model.spec.max_positions, "a session is opened within the model's reach"
        self.model = model.open(model.plan(plan.max_slots, plan.max_positions, tail))
        self.cache = self.model.cache.tensors
        self.output = output
        self.ids_K = output.ids_K
        self.vocab_size = model.spec.vocab_size
        self.device = plan.device
        self.max_pending = tail - num_more
        self.tokens: dict[int, list[int]] = {}
        self.samplings: dict[int, SamplingParams] = {}
        self.num_drafted_read: dict[int, int] = {}
        decoder = None if output.packed is None else model.native
        self.network = None
        # recorded reads have one placement for all layers, so no row of a call may be beyond a window from another, or
        # in another chunk
        if decoder is not None and all(window is None or window >= tail for window in decoder.spec.windows):
            chunk = decoder.spec.smallest_chunk
            if chunk is None or chunk >= self.cache.plan.num_positions:
                self.network = DraftDecoder(decoder, output)

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams) -> None:
        """Make a prompt pending; its last token is the root."""
        self.tokens[slot] = list(tokens)
        self.samplings[slot] = sampling
        self.num_drafted_read[slot] = 0

    def kept(self, slot: int) -> Kept:
        """Copy what was read of a slot's text."""
        num_read = self.cache.lengths[slot]
        return Kept(num_read, caches=(self.cache.copy(slot, num_read),))

    def reuse(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, reused: Reused) -> None:
        """Take over what was read of a text with the same beginning; the rest is pending."""
        kept, num_read = reused.kept, 0
        if kept is not None:
            num_read = kept.reusable(reused.length)
            self.cache.paste(slot, kept.caches[0], num_read)
        self.admit(slot, tokens[num_read:], sampling)

    def commit(self, slot: int, tokens: Sequence[int]) -> None:
        """Make committed tokens pending, but for those that were read while drafting; forget the other drafted ones."""
        # The last committed token is the bonus, which no drafter has read.
        num_kept = min(len(tokens) - 1, self.num_drafted_read[slot])
        self.cache.truncate(slot, self.cache.lengths[slot] - self.num_drafted_read[slot] + num_kept)
        self.tokens[slot] += tokens[num_kept:]
        self.num_drafted_read[slot] = 0

    def release(self, slot: int) -> None:
        """Free a slot."""
        self.cache.reset(slot)
        del self.tokens[slot], self.samplings[slot], self.num_drafted_read[slot]

    def num_pending(self, slot: int) -> int:
        return len(self.tokens[slot])

    def ready(self, slots: Sequence[int]) -> list[int]:
        return list(slots)

    def catch_up(self, slots: Sequence[int], most: int | None = None) -> None:
        """Read pending tokens until no slot has more than `most`; by default, so many that a proposal fits the tail."""
        most = self.max_pending if most is None else most
        many = {slot: max(most, MANY) if self.cache.lengths[slot] else 1 for slot in slots}
        prompts = [slot for slot in slots if len(self.tokens[slot]) > many[slot]]
        if prompts:
            self.model.prefill(prompts, [self.tokens[slot][:-1] for slot in prompts])
            self.tokens |= {slot: self.tokens[slot][-1:] for slot in prompts}
        for slot in slots:
            while len(self.tokens[slot]) > most:
                self.states([slot], [self.tokens[slot][:most]], [[]])
                self.tokens[slot] = self.tokens[slot][most:]

    def take(self, slots: Sequence[int], most: int | None = None) -> dict[int, Pending]:
        self.catch_up(slots, most)
        feeds = {slot: Pending(tokens=self.tokens[slot]) for slot in slots}
        self.tokens |= {slot: [] for slot in slots}
        return feeds

    def keep(self, feeds: Mapping[int, Pending], depths: Mapping[int, int], states_BE: Tensor | None) -> None:
        self.num_drafted_read |= {slot: depths[slot] - 1 for slot in feeds}
        self.cache.extend(list(feeds), [len(feed.tokens) + depths[slot] - 1 for slot, feed in feeds.items()])

    def start(self, slots: Sequence[int]) -> Reading:
        feeds = self.take(slots)
        return self._read(slots, [feed.tokens for feed in feeds.values()])

    def advance(self, slots: Sequence[int], states_BE: Tensor, tokens_B: Tensor, level: int) -> Reading:
        self.num_drafted_read |= dict.fromkeys(slots, level)
        return self._read(slots, [[token] for token in tokens_B.tolist()])

    def _read(self, slots: Sequence[int], feeds: Sequence[Sequence[int]]) -> Reading:
        states_BME = self.states(slots, feeds, [[] for _ in slots])
        states_BE = _rows_of(states_BME, [Row(place, len(feed) - 1) for place, feed in enumerate(feeds)])
        return Reading(states_BE, self.output(states_BE))

    def text_lengths(self, slots: Sequence[int]) -> list[int]:
        return self.cache.lengths_of(slots)

    def states(self, slots: Sequence[int], feeds: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> Tensor:
        """Read each slot's tokens for good and `others` behind them for this once; states at all rows, [B, M, E]."""
        rows = [[*feed, *other] for feed, other in zip(feeds, others, strict=True)]
        chain = Draft.of_chains([row[1:] for row in rows], self.device)
        states_BME = self.model.states(slots, [row[0] for row in rows], chain)
        self.cache.extend(slots, [len(feed) for feed in feeds])
        return states_BME

    def logits(self, states_BME: Tensor, rows: Sequence[Row]) -> Tensor:
        """Return logits [R, K] of the given rows; the output head runs on no others."""
        return self.output(_rows_of(states_BME, rows))

    @property
    def num_bytes(self) -> int:
        """Memory of the cache, in bytes."""
        return self.cache.plan.num_bytes


def _rows_of(states_BME: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the states [R, E] of the given rows; without a copy if these are all rows in order."""
    M = states_BME.shape[1]
    flat = [row.place * M + row.row for row in rows]
    states_RE = states_BME.flatten(0, 1)
    if flat == list(range(len(states_RE))):
        return states_RE
    return states_RE[torch.tensor(flat, device=states_RE.device)]
