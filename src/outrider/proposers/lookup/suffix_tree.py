"""A counted suffix tree: how often each string of up to `max_depth` tokens occurs in some sequences, and what follows.

Sequences grow at their ends and are removed whole; counts follow at once. Counts are per suffix start, so the ratio
count(w y) / count(w) is the empirical probability of y after w. Appending costs O(max_depth) a token, a sequence's own
end needs no search when it is the context, and rows of removed sequences are used again. `suffix_nodes` describes the
memory, `suffix_edit` the counting and `suffix_draft` the drafting (SuffixDecoding, 2411.04975).

Worked example:

>>> tree = SuffixTree(max_depth=4)
>>> tree.extend(tree.open(), [1, 2, 1, 2, 3])
>>> tree.count([1, 2]), tree.count([1, 2, 3])
(2, 1)
>>> tree.speculate([0, 1, 2], max_spec_tokens=1).tokens.tolist()  # 1 and 3 followed once each: the more recent
[3]
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, final

import numpy as np

from outrider.errors import ConfigError, nearest
from outrider.kernels.compiled import Float32Array, Int32Array, as_tokens, grown
from outrider.proposers.lookup.suffix_draft import FLOAT_ROWS, INT_ROWS, copy_tail, count_string, speculate
from outrider.proposers.lookup.suffix_edit import clear_tree, extend_sequence, remove_sequence
from outrider.proposers.lookup.suffix_nodes import BLOCK, NODE_COLUMNS, NUM_COUNTERS, NUM_NODES, TOP_BLOCK, TOP_NODE

__all__ = ["NO_SEQUENCE", "NO_TOKENS", "Mode", "Speculation", "SuffixTree"]

Mode = Literal["path", "tree"]

NO_SEQUENCE = -1
NO_TOKENS = np.empty(0, np.int32)


class Speculation(NamedTuple):
    """A draft of N tokens: `tokens` [N] int32, `parents` [N] int32 (an earlier node, -1 the root), `probs` [N] float32
    (of the whole path to the node), `score` (their sum) and `match_length`, the number of context tokens found again.
    """

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
        """Append `tokens` to `sequence`, in O(max_depth) each."""
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
        """Remove `sequence` from all counts and free its memory and its number."""
        self._num_tokens -= self.length(sequence)
        self._num_sequences -= 1
        remove_sequence(*self._store(), sequence)
        self._free_sequences.append(sequence)

    def length(self, sequence: int) -> int:
        """Return the number of tokens in `sequence`."""
        return int(self._sequences[sequence, 2])

    def tail(self, sequence: int) -> Int32Array:
        """Return the last `max_depth` tokens of `sequence`, or all of fewer."""
        out = np.empty(self._max_depth, np.int32)
        return out[: copy_tail(*self._store(), sequence, self._max_depth, out)]

    def count(self, tokens: Sequence[int] | Int32Array) -> int:
        """Count the string `tokens`, at most `max_depth` long, in the open sequences (overlaps count)."""
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
        """Draft the likeliest continuation: at most min(max_spec_tokens, match_length * factor + offset) tokens.

        Matches are shorter than the context and than `max_depth`. With `sequence`, the context ends with it: its match
        is then known without a search, and `context`, which is needed only beyond its length, may be empty if
        `context_length` says how long it would be. A draft whose score is not above `floor` is returned empty.
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
