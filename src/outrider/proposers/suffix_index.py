"""Suffix index: what followed the end of this context before, in this request and in earlier responses, and how often.

`SuffixTree` counts every string of up to `max_depth` tokens that occurs in a set of growing sequences, and drafts what
most often followed a context. `SuffixCache` serves requests with two kinds of tree (SuffixDecoding, 2411.04975; the
semantics of Arctic Inference):

- a local tree per open request, over its prompt and its own response so far;
- one global tree over responses only, added as they are produced, kept after their requests close, and evicted first in
  first out beyond `max_cached_requests` (0: no global tree, -1: no limit).

Both are asked at each step; the draft with the higher score, the expected number of accepted tokens, wins, and the local
one on a tie. `suffix_nodes` describes the memory, `suffix_edit` the counting and `suffix_draft` the drafting.

Worked example:

>>> cache = SuffixCache(max_depth=8)
>>> cache.open("r", [5, 6, 7, 8, 5, 6])
>>> cache.speculate("r", max_spec_tokens=4, min_token_prob=0.5).tokens.tolist()
[7, 8, 5, 6]

The last two tokens `5 6` occurred twice, once followed by `7 8 5 6`: probability 1/2 each, score 2, match length 2.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np

from outrider.errors import ConfigError, RequestError, nearest
from outrider.proposers.compiled import Float32Array, Int32Array, as_tokens, grown
from outrider.proposers.suffix_draft import (
    FLOAT_ROWS,
    INT_ROWS,
    copy_tail,
    count_string,
    speculate,
)
from outrider.proposers.suffix_edit import clear_tree, extend_sequence, remove_sequence
from outrider.proposers.suffix_nodes import BLOCK, NODE_COLUMNS, NUM_COUNTERS, NUM_NODES, TOP_BLOCK, TOP_NODE

__all__ = ["Mode", "Speculation", "SuffixCache", "SuffixTree"]

Mode = Literal["path", "tree"]

NO_SEQUENCE = -1
NO_TOKENS = np.empty(0, np.int32)


class Speculation(NamedTuple):
    """A draft of N tokens: `tokens_N` int32, `parents_N` int32 (an earlier node, -1 the root), `probs_N` float32 (of the
    whole path to the node), `score` (their sum) and `match_length`, the number of context tokens found again."""

    tokens: Int32Array
    parents: Int32Array
    probs: Float32Array
    score: float
    match_length: int


EMPTY = Speculation(NO_TOKENS, NO_TOKENS, np.empty(0, np.float32), 0.0, 0)


@final
class SuffixTree:
    """Counts of all strings of up to `max_depth` tokens in a set of sequences that grow and go.

    A sequence is named by the number `open` returns. `reserve` is the number of tokens to make room for at once; rows
    of removed sequences are used again.
    """

    def __init__(self, max_depth: int, *, reserve: int = 1024) -> None:
        if max_depth < 2:
            raise ConfigError(f"suffix tree depth {max_depth} is too small; use at least 2 (one matched, one drafted)")
        self._max_depth = max_depth
        self._capacity = max(reserve, BLOCK)
        num_blocks = self._capacity // BLOCK + 8
        self._nodes = np.empty((2 * self._capacity + 2, NODE_COLUMNS), np.int32)
        self._buckets = np.empty(2 * self._capacity + 2, np.int32)
        self._cells = np.empty((num_blocks * BLOCK, 4), np.int32)
        self._blocks = np.empty(num_blocks, np.int32)
        self._sequences = np.zeros((8, 4), np.int32)
        self._counters = np.zeros(NUM_COUNTERS, np.int32)
        self._ints = np.empty((INT_ROWS, max_depth + 1), np.int32)
        self._floats = np.empty((FLOAT_ROWS, max_depth + 1), np.float32)
        self.clear()

    @property
    def max_depth(self) -> int:
        """Longest string counted: a match and its draft together."""
        return self._max_depth

    @property
    def num_sequences(self) -> int:
        """Sequences open now."""
        return self._num_sequences

    @property
    def num_tokens(self) -> int:
        """Tokens of all open sequences."""
        return self._num_tokens

    @property
    def num_nodes(self) -> int:
        """Nodes in use, the root included: at most 2 * num_tokens + 1."""
        return int(self._counters[NUM_NODES])

    @property
    def memory_bytes(self) -> int:
        """Bytes of the rows ever used at once; rows reserved but never touched cost address space only."""
        nodes = int(self._counters[TOP_NODE]) * (NODE_COLUMNS + 1)
        return 4 * (nodes + int(self._counters[TOP_BLOCK]) * (4 * BLOCK + 1) + 4 * len(self._sequences))

    def clear(self) -> None:
        """Remove every sequence."""
        clear_tree(*self._store())
        self._sequences[:] = 0
        self._free_sequences = list(range(len(self._sequences)))[::-1]
        self._num_tokens = self._num_sequences = 0

    def open(self) -> int:
        """Begin an empty sequence; return its number."""
        if not self._free_sequences:
            count = len(self._sequences)
            self._sequences = grown(self._sequences, 2 * count)
            self._sequences[count:] = 0
            self._free_sequences = list(range(count, 2 * count))[::-1]
        self._num_sequences += 1
        return self._free_sequences.pop()

    def extend(self, sequence: int, tokens: Sequence[int] | Int32Array) -> None:
        """Append `tokens` to `sequence`: O(max_depth) each."""
        new = as_tokens(tokens)
        self._num_tokens += len(new)
        if self._num_tokens > self._capacity or self._blocks_needed() > len(self._blocks):
            self._grow()
        extend_sequence(
            self._nodes,
            self._cells,
            self._blocks,
            self._sequences,
            self._buckets,
            self._counters,
            sequence,
            new,
            self._max_depth,
        )

    def remove(self, sequence: int) -> None:
        """Take `sequence` out of all counts and free its memory and its number."""
        self._num_tokens -= self.length(sequence)
        self._num_sequences -= 1
        remove_sequence(*self._store(), sequence)
        self._free_sequences.append(sequence)

    def length(self, sequence: int) -> int:
        """Number of tokens in `sequence`."""
        return int(self._sequences[sequence, 2])

    def tail(self, sequence: int) -> Int32Array:
        """The last `max_depth` tokens of `sequence`, or all of fewer."""
        out = np.empty(self._max_depth, np.int32)
        return out[: copy_tail(*self._store(), sequence, self._max_depth, out)]

    def count(self, tokens: Sequence[int] | Int32Array) -> int:
        """How often the string `tokens`, at most `max_depth` long, occurs in the open sequences (overlaps count)."""
        return count_string(*self._store(), as_tokens(tokens))

    def speculate(
        self,
        context: Sequence[int] | Int32Array,
        max_spec_tokens: int,
        factor: float = 1.0,
        offset: float = 0.0,
        min_token_prob: float = 0.1,
        mode: Mode = "path",
        *,
        sequence: int = NO_SEQUENCE,
        context_length: int | None = None,
        floor: float = 0.0,
    ) -> Speculation:
        """What most likely follows `context`, in at most min(max_spec_tokens, match_length * factor + offset) tokens.

        Matches are shorter than the context and than `max_depth`. With `sequence`, the context ends with it: its match
        is then known without a search, and `context`, which is needed only beyond its length, may be empty if
        `context_length` says how long it would be. Only a draft with a score above `floor` is returned, else an empty one.
        """
        if mode not in ("path", "tree"):
            raise ConfigError(f"unknown suffix mode '{mode}'{nearest(mode, ('path', 'tree'))}")
        tokens = as_tokens(context)
        if max_spec_tokens >= self._ints.shape[1]:
            self._ints = np.empty((INT_ROWS, max_spec_tokens + 1), np.int32)
            self._floats = np.empty((FLOAT_ROWS, max_spec_tokens + 1), np.float32)
        length = len(tokens) if context_length is None else context_length
        count, match_length, score = speculate(
            self._nodes,
            self._cells,
            self._blocks,
            self._sequences,
            self._buckets,
            self._counters,
            sequence,
            tokens,
            self._max_depth,
            min(length, self._max_depth) - 1,
            max_spec_tokens,
            factor,
            offset,
            min_token_prob,
            mode == "tree",
            floor,
            self._ints,
            self._floats,
        )
        if count == 0:
            return EMPTY
        return Speculation(
            self._ints[0, :count].copy(),
            self._ints[1, :count].copy(),
            self._floats[0, :count].copy(),
            score,
            match_length,
        )

    def _store(self) -> tuple[Int32Array, Int32Array, Int32Array, Int32Array, Int32Array, Int32Array]:
        return self._nodes, self._cells, self._blocks, self._sequences, self._buckets, self._counters

    def _blocks_needed(self) -> int:
        return self._num_tokens // BLOCK + self._num_sequences + 1

    def _grow(self) -> None:
        self._capacity = max(2 * self._capacity, self._num_tokens)
        num_blocks = max(self._capacity // BLOCK + 8, 2 * self._blocks_needed())
        self._nodes = grown(self._nodes, 2 * self._capacity + 2)
        self._buckets = grown(self._buckets, 2 * self._capacity + 2)
        self._cells = grown(self._cells, num_blocks * BLOCK)
        self._blocks = grown(self._blocks, num_blocks)


@dataclass(slots=True)
class _Request:
    """An open request: its local tree and its sequence there, and its sequence in the global tree."""

    local: SuffixTree
    local_sequence: int
    global_sequence: int
    length: int
    response_length: int


@final
class SuffixCache:
    """Suffix decoding for many requests: local trees, and a global tree of cached responses.

    `max_depth` caps match and draft together (24 in vLLM). A request is any hashable name; it may come again after
    `close`, and its earlier response is then evicted.
    """

    def __init__(self, max_depth: int = 24, max_cached_requests: int = 10_000) -> None:
        if max_cached_requests < -1:
            raise ConfigError(
                f"max_cached_requests {max_cached_requests} is out of range; use -1 (no limit), 0 or more"
            )
        self._max_cached_requests = max_cached_requests
        self._global = SuffixTree(max_depth, reserve=1 << 16 if max_cached_requests else BLOCK)
        self._open: dict[Hashable, _Request] = {}
        self._cached: dict[Hashable, int] = {}

    @property
    def open_requests(self) -> tuple[Hashable, ...]:
        """Requests opened and not closed, oldest first."""
        return tuple(self._open)

    @property
    def cached_requests(self) -> tuple[Hashable, ...]:
        """Requests whose response is in the global tree, the next to be evicted first."""
        return tuple(self._cached)

    @property
    def memory_bytes(self) -> int:
        """Bytes in use by the global tree and all local trees."""
        return self._global.memory_bytes + sum(request.local.memory_bytes for request in self._open.values())

    def open(self, request: Hashable, prompt_tokens: Sequence[int] | Int32Array) -> None:
        """Begin a request: index its prompt and give its response a place in the global tree, evicting the oldest.

        Raises:
            RequestError: if it is open already.
        """
        if request in self._open:
            raise RequestError(f"request {request!r} is already open; close it first")
        prompt = as_tokens(prompt_tokens)
        local = SuffixTree(self._global.max_depth, reserve=2 * len(prompt) + 1024)
        sequence = local.open()
        local.extend(sequence, prompt)
        self._open[request] = _Request(local, sequence, self._admit(request), len(prompt), 0)

    def append(self, request: Hashable, tokens: Sequence[int] | Int32Array) -> None:
        """Append produced tokens to the request's response, in its local tree and, unless evicted, in the global one."""
        state = self._state(request)
        new = as_tokens(tokens)
        state.local.extend(state.local_sequence, new)
        state.length += len(new)
        state.response_length += len(new)
        if state.global_sequence != NO_SEQUENCE:
            self._global.extend(state.global_sequence, new)

    def speculate(
        self,
        request: Hashable,
        max_spec_tokens: int = 24,
        factor: float = 1.0,
        offset: float = 0.0,
        min_token_prob: float = 0.1,
        mode: Mode = "path",
    ) -> Speculation:
        """The better of the local and the global draft after the request's context; the local one at equal scores."""
        state = self._state(request)
        settings = (max_spec_tokens, factor, offset, min_token_prob, mode)
        local = state.local.speculate(NO_TOKENS, *settings, sequence=state.local_sequence, context_length=state.length)
        if self._global.num_tokens == 0:
            return local
        own = state.global_sequence
        covered = own != NO_SEQUENCE and state.response_length >= min(self._global.max_depth, state.length) - 1
        context = NO_TOKENS if covered else state.local.tail(state.local_sequence)
        better = self._global.speculate(
            context, *settings, sequence=own, context_length=state.length, floor=local.score
        )
        return better if len(better.tokens) else local

    def close(self, request: Hashable) -> None:
        """End a request: its local tree goes, its response stays cached until it is evicted."""
        self._state(request)
        del self._open[request]

    def evict(self, request: Hashable) -> None:
        """Take the request's response out of the global tree.

        Raises:
            RequestError: if it is not cached.
        """
        if request not in self._cached:
            raise RequestError(f"request {request!r} has no cached response; it was never opened or is already evicted")
        self._global.remove(self._cached.pop(request))
        if request in self._open:
            self._open[request].global_sequence = NO_SEQUENCE

    def clear(self) -> None:
        """Forget all cached responses; open requests go on with their local trees alone."""
        self._global.clear()
        self._cached.clear()
        for state in self._open.values():
            state.global_sequence = NO_SEQUENCE

    def _admit(self, request: Hashable) -> int:
        if self._max_cached_requests == 0:
            return NO_SEQUENCE
        if request in self._cached:
            self.evict(request)
        while len(self._cached) >= self._max_cached_requests > 0:
            self.evict(next(iter(self._cached)))
        self._cached[request] = self._global.open()
        return self._cached[request]

    def _state(self, request: Hashable) -> _Request:
        if request not in self._open:
            raise RequestError(f"request {request!r} is not open; open it with its prompt first")
        return self._open[request]
