"""N-gram index: find earlier occurrences of the last n tokens of a context (prompt lookup, Saxena 2023).

The longest n in [min_n, max_n] is tried first, and the tokens that followed the occurrence are the draft. Appending a
token costs O(max_n), a draft nothing that grows with the context.

An n-gram is named by the position where its first occurrence ends. With `first_n[i]` the name of the n-gram ending at
i, and x the tokens,

    n-grams ending at i and j are equal  <=>  first_{n-1}[i] == first_{n-1}[j] and x[i-n+1] == x[j-n+1],

so the pair (first_{n-1}[i], x[i-n+1]) is an exact key of constant size. A hash table maps it to the name, and a hit is
verified by comparing the pair. Occurrences of one n-gram are linked both ways.

`draft(K, "earliest")` equals vLLM's `ngram`; with min_n = 1 it equals Hugging Face's `prompt_lookup_num_tokens`. Both
are tests. `"latest"` is accepted more often on code and on edits.

Worked example, tokens `a b c a b d a b`, n in [1, 2]: the suffix `a b` ended before at 1 and at 4, so `earliest` drafts
`c a b d a b` and `latest` drafts `d a b`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, final

import numpy as np

from outrider.errors import ConfigError, nearest
from outrider.kernels.compiled import Int32Array, as_tokens, compiled, grown

__all__ = ["MAX_OCCURRENCES", "NgramIndex", "NgramMatch", "Policy"]

Policy = Literal["earliest", "latest"]

MAX_OCCURRENCES = 64
"""Occurrences examined per n and draft while looking for further distinct candidates: a bound on the time of a step."""

# Columns of links[position, n - 1]; LAST is kept at the n-gram's first occurrence only.
FIRST, PREVIOUS, NEXT, LAST = 0, 1, 2, 3


class NgramMatch(NamedTuple):
    """One candidate: `tokens` (int32, 1 to max_tokens of them) followed position `end` of the context, where an
    occurrence of its last `n` tokens ends."""

    tokens: Int32Array
    n: int
    end: int


@final
class NgramIndex:
    """The n-grams, n in [min_n, max_n], of one request's context; grows with it.

    `reserve` is the number of tokens to make room for at once. Memory is about 36 * max_n bytes a token.
    """

    def __init__(self, min_n: int, max_n: int, *, reserve: int = 256) -> None:
        if not 1 <= min_n <= max_n:
            raise ConfigError(f"n-gram lengths [{min_n}, {max_n}] are not a range; use 1 <= min_n <= max_n")
        self._min_n, self._max_n = min_n, max_n
        self._length = 0
        self._tokens = np.empty(0, np.int32)
        self._links = np.empty((0, max_n, 4), np.int32)
        self._table = np.empty(0, np.int32)
        # Reused by every draft; grows with num_candidates.
        self._found = np.empty((8, 2), np.int32)
        self._reserve(max(reserve, 16))

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> Int32Array:
        """A copy of the context, oldest token first."""
        return self._tokens[: self._length].copy()

    @property
    def memory_bytes(self) -> int:
        """Bytes held by the arrays of this index."""
        return self._tokens.nbytes + self._links.nbytes + self._table.nbytes

    def extend(self, tokens: Sequence[int] | Int32Array) -> None:
        """Append `tokens` to the context, in O(max_n) each."""
        new = as_tokens(tokens)
        if self._length + len(new) > len(self._tokens):
            self._reserve(max(2 * len(self._tokens), self._length + len(new)))
        _extend(self._tokens, self._links, self._table, self._length, new)
        self._length += len(new)

    def draft(self, max_tokens: int, policy: Policy = "earliest", num_candidates: int = 1) -> list[NgramMatch]:
        """Find up to `num_candidates` continuations of the context, of up to `max_tokens` tokens each.

        The first is that of the longest n and of the occurrence that `policy` names. Further ones come from the next
        occurrences in the order of `policy`, then from shorter n; one that is a prefix of an earlier one is left out.
        """
        if policy not in ("earliest", "latest"):
            raise ConfigError(f"unknown n-gram policy '{policy}'{nearest(policy, ('earliest', 'latest'))}")
        if num_candidates > len(self._found):
            self._found = np.empty((num_candidates, 2), np.int32)
        count = _find(
            self._tokens,
            self._links,
            self._length,
            self._min_n,
            max_tokens,
            policy == "latest",
            num_candidates,
            self._found,
        )
        if count == 0:
            return []
        # A draft never runs past the end of the context, as in vLLM.
        stop = self._length - 1
        return [
            NgramMatch(self._tokens[end + 1 : min(end + max_tokens, stop) + 1].copy(), n, end)
            for end, n in self._found[:count].tolist()
        ]

    def _reserve(self, capacity: int) -> None:
        self._tokens = grown(self._tokens, capacity)
        self._links = grown(self._links, capacity)
        # At most one name per position and length; the load factor stays at or below one half.
        self._table = np.full(1 << (2 * capacity * self._max_n - 1).bit_length(), -1, np.int32)
        _rehash(self._tokens, self._links, self._table, self._length)


@compiled
def _slot(tokens: Int32Array, links: Int32Array, table: Int32Array, name: int, token: int, n: int) -> int:
    """Find the table slot of the n-gram `token` + (n-1)-gram called `name`: its own, or the free one for it."""
    mask = len(table) - 1
    max_n = links.shape[1]
    # Mix (name, token, n) into 64 bits.
    key = np.uint64(np.uint32(name + 1)) << np.uint64(32) | np.uint64(np.uint32(token))
    key = (key ^ (np.uint64(n) * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xD6E8FEB86659FD93)
    slot = int((key ^ (key >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(24)) & mask
    # Linear probing; the pair is compared, so a hash collision is no match.
    while table[slot] >= 0:
        end, row = divmod(table[slot], max_n)
        if row == n - 1 and tokens[end - row] == token and (row == 0 or links[end, row - 1, FIRST] == name):
            break
        slot = (slot + 1) & mask
    return slot


@compiled
def _extend(tokens: Int32Array, links: Int32Array, table: Int32Array, length: int, new: Int32Array) -> None:
    max_n = links.shape[1]
    for i in range(length, length + len(new)):
        tokens[i] = new[i - length]
        name = -1
        for row in range(min(max_n, i + 1)):
            slot = _slot(tokens, links, table, name, tokens[i - row], row + 1)
            links[i, row, NEXT] = -1
            if table[slot] < 0:
                table[slot] = i * max_n + row
                name = i
                links[i, row, PREVIOUS] = -1
            else:
                name = table[slot] // max_n
                previous = links[name, row, LAST]
                links[i, row, PREVIOUS] = previous
                links[previous, row, NEXT] = i
            links[i, row, FIRST] = name
            links[name, row, LAST] = i


@compiled
def _rehash(tokens: Int32Array, links: Int32Array, table: Int32Array, length: int) -> None:
    max_n = links.shape[1]
    for i in range(length):
        for row in range(min(max_n, i + 1)):
            # Only first occurrences own a slot.
            if links[i, row, FIRST] == i:
                name = -1 if row == 0 else links[i, row - 1, FIRST]
                table[_slot(tokens, links, table, name, tokens[i - row], row + 1)] = i * max_n + row


@compiled
def _covered(tokens: Int32Array, length: int, max_tokens: int, found: Int32Array, count: int, end: int) -> bool:
    """Check whether the continuation after `end` is a prefix of that of an earlier candidate."""
    size = min(max_tokens, length - 1 - end)
    for k in range(count):
        other = found[k, 0]
        if size > min(max_tokens, length - 1 - other):
            continue
        same = 0
        while same < size and tokens[end + 1 + same] == tokens[other + 1 + same]:
            same += 1
        if same == size:
            return True
    return False


@compiled
def _find(
    tokens: Int32Array,
    links: Int32Array,
    length: int,
    min_n: int,
    max_tokens: int,
    latest: bool,
    num_candidates: int,
    found: Int32Array,
) -> int:
    """Write (end, n) of each candidate to `found`; return how many."""
    count = 0
    if max_tokens <= 0:
        return count
    i = length - 1
    for n in range(min(links.shape[1], i), min_n - 1, -1):
        end = links[i, n - 1, PREVIOUS] if latest else links[i, n - 1, FIRST]
        examined = 0
        while 0 <= end < i and count < num_candidates and examined < MAX_OCCURRENCES:
            if not _covered(tokens, length, max_tokens, found, count, end):
                found[count, 0] = end
                found[count, 1] = n
                count += 1
            end = links[end, n - 1, PREVIOUS] if latest else links[end, n - 1, NEXT]
            examined += 1
        if count == num_candidates:
            break
    return count
