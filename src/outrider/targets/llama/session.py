"""A running batch on llama.cpp: its cache, prefill and forward.

The cache of the seam is a thin one: lengths here, keys and values in the library. A step that was read waits until it
is committed; if it never is, it is undone before the next one.

    forward    rows of all slots in one call            logits of every row
    commit     the accepted path is kept, the rest undone (`sequences.py`)

Example: `forward([0], [5], Draft.of_chains([[6, 7]]))` and `cache.commit([0], [[1]])` make slot 0 two tokens longer.

Shapes: B slots, M rows of one slot, R rows of a call, T prompt tokens, V vocabulary, E hidden size, F features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import Cache, CachedText, CachePlan, KVCache
from outrider.draft import Draft, Tree
from outrider.errors import ConfigError
from outrider.target import Forward, TargetSession
from outrider.targets.llama.binding import Context, NDBytes, Row
from outrider.targets.llama.sequences import Memory, Pending
from outrider.targets.llama.states import StateReader

__all__ = ["LlamaCache", "LlamaSession"]

NO_DRAFT_MODEL = "a target on llama.cpp cannot be a draft model; give a draft model that loads with backend='auto'"


@final
@dataclass(frozen=True, eq=False)
class CachedState(CachedText):
    """A sequence as llama.cpp stores it."""

    data: NDBytes
    num_positions: int

    @property
    def length(self) -> int:
        return self.num_positions

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes)


@final
class LlamaCache(Cache):
    """The lengths of the slots, whose keys, values and states the library holds."""

    def __init__(self, plan: CachePlan, context: Context, memory: Memory) -> None:
        self.plan = plan
        self.lengths = [0] * plan.num_slots
        self._context = context
        self._memory = memory
        self._pending: dict[int, Pending] = {}

    @property
    def tensors(self) -> KVCache:
        raise ConfigError(NO_DRAFT_MODEL)

    def stage(self, slot: int, root: int, tree: Tree) -> list[Row]:
        """Return the rows of a step, which `commit` keeps; a step that was not committed is undone first."""
        self.settle(slot)
        self._pending[slot], rows = self._memory.stage(slot, self.lengths[slot], root, tree)
        return rows

    def append(self, slot: int, count: int) -> None:
        """Count positions that were read for good."""
        self.lengths[slot] += count

    def settle(self, slot: int) -> None:
        """Undo a step that was not committed."""
        pending = self._pending.pop(slot, None)
        if pending is not None:
            self._memory.undo(slot, self.lengths[slot], pending)

    def commit(self, slots: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        for slot, path in zip(slots, paths, strict=True):
            self._memory.keep(slot, self.lengths[slot], self._pending.pop(slot), path)
            self.lengths[slot] += 1 + len(path)

    def extend(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        self.commit(slots, [range(1, count) for count in counts])

    def pretend(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        for slot, count in zip(slots, counts, strict=True):
            for rows in pieces(slot, self.lengths[slot], [0] * count, self._context.most_rows):
                self._context.read(rows, wants=False)
            self.lengths[slot] += count

    def copy(self, slot: int, length: int) -> CachedText:
        self.settle(slot)
        self.truncate(slot, length)
        return CachedState(self._context.stored(slot), length)

    def paste(self, slot: int, text: CachedText, length: int) -> None:
        assert self.lengths[slot] == 0, f"slot {slot} is not empty"
        assert isinstance(text, CachedState)
        self._context.restore(slot, text.data)
        self.lengths[slot] = text.length
        self.truncate(slot, length)

    def truncate(self, slot: int, length: int) -> None:
        self.settle(slot)
        if length < self.lengths[slot]:
            cut = self._context.forget(slot, length)
            assert cut, "only attention forgets some positions"
            self.lengths[slot] = length

    def reset(self, slot: int) -> None:
        self.settle(slot)
        self._context.forget(slot)
        self._memory.free(slot)
        self.lengths[slot] = 0

    def clear(self) -> None:
        for slot in range(self.plan.num_slots):
            self.reset(slot)
        self._context.clear()


def pieces(slot: int, start: int, tokens: Sequence[int], width: int) -> Iterator[list[Row]]:
    """Yield the rows of a text behind `start` positions of a slot, so many at a time."""
    for at in range(0, len(tokens), width):
        some = tokens[at : at + width]
        yield [Row(token, start + at + place, (slot,)) for place, token in enumerate(some)]


class _Piece(NamedTuple):
    """Some tokens of a prompt: its slot and how many."""

    slot: int
    num_tokens: int


@final
class LlamaSession(TargetSession):
    """A context, its cache, and what reads hidden states in it."""

    def __init__(self, context: Context, cache: LlamaCache, reader: StateReader | None) -> None:
        self._context = context
        self._cache = cache
        self._reader = reader
        if reader is not None:  # a graph without such tensors is refused before any text is read
            context.read([Row(0, 0, (0,))])
            reader.collect(1)
            context.clear()

    @property
    def cache(self) -> LlamaCache:
        return self._cache

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        found: dict[int, list[Tensor]] = {slot: [] for slot in slots}
        for slot in slots:
            self._cache.settle(slot)
        for rows, shares in self._chunks(slots, prompts):
            features_RF = self._read(rows, wants=self._reader is not None and self._reader.needs_outputs).features_RF
            at = 0
            for slot, count in shares:
                self._cache.append(slot, count)
                if features_RF is not None:
                    found[slot].append(features_RF[at : at + count])
                at += count
        if self._reader is None:
            return [None] * len(slots)
        none_TF = torch.empty(0, self._reader.width, dtype=self._reader.dtype)
        return [torch.cat([none_TF, *found[slot]]) for slot in slots]

    def _chunks(
        self, slots: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[Row], list[_Piece]]]:
        """Yield calls of at most `most_rows` rows, prompt after prompt."""
        rows: list[Row] = []
        shares: list[_Piece] = []
        for slot, prompt in zip(slots, prompts, strict=True):
            start, at = self._cache.lengths[slot], 0
            while at < len(prompt):
                count = min(len(prompt) - at, self._context.most_rows - len(rows))
                rows += [Row(prompt[at + place], start + at + place, (slot,)) for place in range(count)]
                shares.append(_Piece(slot, count))
                at += count
                if len(rows) == self._context.most_rows:
                    yield rows, shares
                    rows, shares = [], []
        if rows:
            yield rows, shares

    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        rows: list[Row] = []
        for slot, root, tree in zip(slots, roots, draft.trees, strict=True):
            rows += self._cache.stage(slot, root, tree)
        logits_RV, features_RF = self._read(rows, wants=True)
        counts = [count + 1 for count in draft.num_nodes]
        features_BMF = None if features_RF is None else _padded(torch.split(features_RF, counts), draft.num_rows)
        if len(set(counts)) == 1:
            return Forward(logits_RV.view(len(counts), counts[0], -1), features_BMF)
        return Forward(list(torch.split(logits_RV, counts)), features_BMF)

    def states(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Tensor:
        raise ConfigError(NO_DRAFT_MODEL)

    def _read(self, rows: list[Row], *, wants: bool) -> "_Output":
        reader = self._reader
        if reader is not None:
            reader.drop()  # left by a call that failed
        logits_RV = self._context.read(rows, wants=wants)
        return _Output(logits_RV, None if reader is None else reader.collect(len(rows)))


class _Output(NamedTuple):
    logits_RV: Tensor
    features_RF: Tensor | None


def _padded(features: Sequence[Tensor], num_rows: int) -> Tensor:
    """Return [B, M, F] of the features [R, F] of each slot, with zeros as padding."""
    features_BMF = features[0].new_zeros(len(features), num_rows, features[0].shape[1])
    for place, features_RF in enumerate(features):
        features_BMF[place, : len(features_RF)] = features_RF
    return features_BMF
