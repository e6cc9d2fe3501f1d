"""The key/value cache of a running batch: one row of positions per slot, allocated once and never copied.

A slot of length n holds the keys and values of its first n committed tokens, all but the root. A step writes its rows
(root and nodes) behind the length, in positions n, n+1, ..., and padding rows into one trash position that nothing
reads (`placement.py`). `commit` then keeps the root and the accepted path: a chain is only a new length, for a tree one
gather moves rows together.

    length 5, rows written to 5 6 7 8 (root, a, b, a's child)     accepted path: a, a's child = rows 1, 3
    commit moves position 8 to 7; the length becomes 8 (root, a, a's child)

A drafter's cache may keep a `Window` of each text.

Keys may be stored as [L, C, H, D, S], for kernels that add vectors of scores; others see [L, C, H, S, D]. In int8 a
head is its codes and then the bytes of their fp32 scale.

Shapes: L layers, C slots, H key/value heads, S positions (capacity + tail + 1, or a little more), D stored head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

__all__ = ["SCALE_BYTES", "Cache", "CachePlan", "CachedText", "KVCache", "Window"]

TRANSPOSED, TRANSPOSED_INT8 = 32, 64
"""Transposed keys are stored for an odd multiple of so many positions: whole vectors and cache lines, and no power of
two as stride, which would map all numbers of a head to the same few sets of the first-level cache."""
SCALE_BYTES = 4
"""The bytes behind the codes of a head in int8: its scale in fp32."""
TIMED, TIMED_BYTE = 0.01, 0x3B
"""The value of keys and values where only time counts; in int8 that of all bytes, which makes scales of 0.003."""


class Window(NamedTuple):
    """The positions of a text that a drafter reads: its first `sinks`, and its last `recent` or up to an eighth more.

    Which ones follows from the text's length alone.

    Example: `Window(512, 4)` shows a text of 579 positions whole, and of one of 580 all but positions 4 to 67.
    """

    recent: int
    sinks: int

    @property
    def step(self) -> int:
        """Positions by which the window moves: one copy of it serves so many tokens."""
        return max(1, self.recent // 8)

    @property
    def size(self) -> int:
        """The most positions that are read."""
        return self.sinks + self.recent + self.step - 1

    def dropped(self, length: int) -> int:
        """Count the positions behind the sinks that a text of that length does not show."""
        return max(0, length - self.sinks - self.recent) // self.step * self.step


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The size of a cache, known before it is allocated.

    capacity          committed positions of a slot
    tail              the most rows of a step, behind them
    dtype             dtype of keys and values; int8 for codes with a scale for each head
    transposed_keys   store keys as [L, C, H, D, S]
    state_bytes       memory of a slot that does not grow with its text
    window            the positions of a text that are kept; None for all of them
    text_capacity     committed positions of a text, where only a window of them is read
    """

    num_layers: int
    num_slots: int
    num_kv_heads: int
    head_dim: int
    capacity: int
    tail: int
    dtype: torch.dtype
    transposed_keys: bool = False
    state_bytes: int = 0
    window: Window | None = None
    text_capacity: int = 0

    def within(self, window: Window | None) -> Self:
        """Return the plan of a cache that shows a window of each text; itself where that holds all of a text."""
        if window is None or window.size >= self.capacity:
            return self
        return replace(self, capacity=window.size, window=window, text_capacity=self.capacity)

    @property
    def whole(self) -> Self:
        """The plan of the whole texts beside their windows."""
        return replace(self, capacity=self.text_capacity, tail=0, window=None, text_capacity=0)

    @property
    def rotary_positions(self) -> int:
        """Positions of a text and a step behind it."""
        return max(self.capacity, self.text_capacity) + self.num_positions - self.capacity

    @property
    def num_positions(self) -> int:
        return self.capacity + self.tail + 1

    @property
    def stored_positions(self) -> int:
        """S: the positions with memory."""
        # rounded up to whole vectors, then to an odd number of them
        unit = TRANSPOSED_INT8 if self.dtype == torch.int8 else TRANSPOSED
        multiple = -(-self.num_positions // unit)
        return unit * (multiple + 1 - multiple % 2) if self.transposed_keys else self.num_positions

    @property
    def stored_head(self) -> int:
        """D: the numbers of a head in memory, with the bytes of a scale in int8."""
        return self.head_dim + (SCALE_BYTES if self.dtype == torch.int8 else 0)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.stored_head * self.dtype.itemsize

    @property
    def bytes_per_slot(self) -> int:
        return self.bytes_per_token * self.stored_positions + self.state_bytes

    @property
    def num_bytes(self) -> int:
        whole = 0 if self.window is None else self.whole.num_bytes
        return self.bytes_per_slot * self.num_slots + whole


class CachedText(ABC):
    """A copy of the first positions of a slot, as its cache stores them."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Positions that were copied."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory of the copy."""


class Cache(ABC):
    """The texts that a running batch holds: the number of committed positions of each slot, and what they are read as.

    `lengths[slot]` counts the committed positions of a slot.
    """

    plan: CachePlan
    lengths: list[int]

    @property
    @abstractmethod
    def tensors(self) -> "KVCache":
        """Keys and values as tensors, for what computes with them.

        Raises:
            ConfigError: if another library holds them.
        """

    @abstractmethod
    def extend(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Commit the first `counts[b]` rows that were written behind each slot's length."""

    @abstractmethod
    def commit(self, slots: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        """Commit the root and the rows of each slot's accepted path, in path order."""

    @abstractmethod
    def pretend(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Give empty slots a text of that length whose content does not matter, for what only takes the time."""

    @abstractmethod
    def copy(self, slot: int, length: int) -> CachedText:
        """Return a copy of the first `length` positions of a slot."""

    @abstractmethod
    def paste(self, slot: int, text: CachedText, length: int) -> None:
        """Fill an empty slot with the first `length` positions of a copy."""

    @abstractmethod
    def truncate(self, slot: int, length: int) -> None:
        """Forget everything behind the first `length` positions of a slot."""

    @abstractmethod
    def reset(self, slot: int) -> None:
        """Free a slot for the next request."""

    @abstractmethod
    def clear(self) -> None:
        """Free all slots, so that numbers that are not finite cannot return."""

    def lengths_of(self, slots: Sequence[int]) -> list[int]:
        return [self.lengths[slot] for slot in slots]


@final
@dataclass(frozen=True, eq=False)
class CachedTensors(CachedText):
    """Keys and values [L, H, S, D]."""

    keys_LHSD: Tensor
    values_LHSD: Tensor

    @property
    def length(self) -> int:
        return self.values_LHSD.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.keys_LHSD.nbytes + self.values_LHSD.nbytes


@final
class KVCache(Cache):
    """Keys and values of all layers and slots, and the number of committed positions of each slot.

    With a window, `dropped[slot]` counts the positions of a text behind its sinks that are not shown; `whole` has them
    too, so that a later request may begin with any part of the text.
    """

    def __init__(self, plan: CachePlan, device: torch.device | str = "cpu") -> None:
        shape = (plan.num_layers, plan.num_slots, plan.num_kv_heads, plan.stored_positions, plan.stored_head)
        self.plan = plan
        self.device = torch.device(device)
        if plan.transposed_keys:
            self.keys_LCHSD = torch.zeros(*shape[:3], *shape[:2:-1], dtype=plan.dtype, device=device).transpose(-1, -2)
        else:
            self.keys_LCHSD = torch.zeros(shape, dtype=plan.dtype, device=device)
        self.values_LCHSD = torch.zeros(shape, dtype=plan.dtype, device=device)
        self.lengths = [0] * plan.num_slots
        self.dropped = [0] * plan.num_slots
        self.whole = None if plan.window is None else KVCache(plan.whole, device)
        self.trash = plan.num_positions - 1
        self._is_filled = False

    @property
    def tensors(self) -> "KVCache":
        return self

    def extend(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        for slot, count in zip(slots, counts, strict=True):
            start, stop = self.lengths[slot], self.lengths[slot] + count
            assert stop <= self.plan.capacity
            if self.whole is not None:
                _move(self, self.whole, slot, range(start, stop), self.whole.lengths[slot])
                self.whole.lengths[slot] += count
            self.lengths[slot] = stop

    def text_lengths_of(self, slots: Sequence[int]) -> list[int]:
        """Return the positions of each slot's text, dropped ones included: where its next token stands."""
        return [self.lengths[slot] + self.dropped[slot] for slot in slots]

    def slide(self, slot: int, count: int) -> None:
        """Move a slot's window for the next `count` positions of its text, at most `recent`."""
        window, length = self.plan.window, self.lengths[slot]
        if window is None:
            return
        assert count <= window.recent, f"{count} positions at once in a window of {window.recent}"
        old = window.dropped(length + self.dropped[slot] + count) - self.dropped[slot]
        if old:
            for cached_LCHSD in (self.keys_LCHSD, self.values_LCHSD):
                cached_LHSD = cached_LCHSD[:, slot]
                kept_LHSD = cached_LHSD[:, :, window.sinks + old : length].clone()
                cached_LHSD[:, :, window.sinks : length - old] = kept_LHSD
            self.lengths[slot] -= old
            self.dropped[slot] += old

    def commit(self, slots: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        for slot, path in zip(slots, paths, strict=True):
            start = self.lengths[slot] + 1
            # row k + 1 of a path that follows the draft's order is where it belongs: a chain moves nothing
            moved = [(start + k, self.lengths[slot] + row) for k, row in enumerate(path) if row != k + 1]
            if moved:
                to, source = (torch.tensor(side, device=self.device) for side in zip(*moved, strict=True))
                for cached_LCHSD in (self.keys_LCHSD, self.values_LCHSD):
                    cached_LHSD = cached_LCHSD[:, slot]
                    cached_LHSD[:, :, to] = cached_LHSD[:, :, source]
        self.extend(slots, [1 + len(path) for path in paths])

    def pretend(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        if not self._is_filled:  # once: writing memory just before a timing would warm the processor's caches
            number = TIMED_BYTE if self.plan.dtype == torch.int8 else TIMED
            self.keys_LCHSD.fill_(number)
            self.values_LCHSD.fill_(number)
            self._is_filled = True
        self.extend(slots, counts)

    def copy(self, slot: int, length: int) -> CachedText:
        if self.whole is not None:
            return self.whole.copy(slot, length)
        assert 0 <= length <= self.lengths[slot]
        keys_LHSD, values_LHSD = (side[:, slot, :, :length] for side in (self.keys_LCHSD, self.values_LCHSD))
        if self.plan.transposed_keys:  # in the order of memory: whole runs of positions
            keys_LHSD = keys_LHSD.transpose(-1, -2).clone(memory_format=torch.contiguous_format).transpose(-1, -2)
        else:
            keys_LHSD = keys_LHSD.clone(memory_format=torch.contiguous_format)
        return CachedTensors(keys_LHSD, values_LHSD.clone(memory_format=torch.contiguous_format))

    def paste(self, slot: int, text: CachedText, length: int) -> None:
        assert self.lengths[slot] == 0, f"slot {slot} is not empty"
        assert isinstance(text, CachedTensors)
        if self.whole is not None and self.plan.window is not None:
            self.whole.paste(slot, text, length)
            sinks, dropped = min(length, self.plan.window.sinks), self.plan.window.dropped(length)
            _move(self.whole, self, slot, range(sinks), 0)
            _move(self.whole, self, slot, range(sinks + dropped, length), sinks)
            self.lengths[slot], self.dropped[slot] = length - dropped, dropped
            return
        assert length <= min(text.length, self.plan.capacity)
        self.keys_LCHSD[:, slot, :, :length] = text.keys_LHSD[:, :, :length]
        self.values_LCHSD[:, slot, :, :length] = text.values_LHSD[:, :, :length]
        self.lengths[slot] = length

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def reset(self, slot: int) -> None:
        self.lengths[slot] = self.dropped[slot] = 0
        if self.whole is not None:
            self.whole.reset(slot)

    def clear(self) -> None:
        self.lengths[:] = self.dropped[:] = [0] * self.plan.num_slots
        self.keys_LCHSD.zero_()
        self.values_LCHSD.zero_()
        if self.whole is not None:
            self.whole.clear()


def _move(source: KVCache, goal: KVCache, slot: int, positions: range, start: int) -> None:
    """Copy positions of a slot from one cache to another, from `start` on."""
    stop = start + len(positions)
    goal.keys_LCHSD[:, slot, :, start:stop] = source.keys_LCHSD[:, slot, :, positions.start : positions.stop]
    goal.values_LCHSD[:, slot, :, start:stop] = source.values_LCHSD[:, slot, :, positions.start : positions.stop]
