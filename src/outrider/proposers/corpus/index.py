"""Drafting from a suffix array: find the end of the context among sorted suffixes, follow what came next most often.

The suffixes that begin with a string w are neighbours in the array, and their number is count(w). So are, within them,
those that begin with w y. From there a draft grows as in `lookup/suffix_draft.py`: a token y after w has probability
count(w y) / count(w), and the match whose draft has the highest sum of path probabilities wins, at equal sums the
longest.

A token that is probable enough owns a long run of neighbours, so the search for it jumps: of n suffixes and a least
share p at most about 2 / p places are looked at. At equal counts the lower token id comes first.

Example: of the documents `a b c`, `a b d`, `a b c` the context `x a b` drafts c (2/3).
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from outrider.kernels.compiled import Float32Array, Int32Array, as_tokens, compiled, float32, inlined
from outrider.proposers.corpus.search import interval, longest, next_run, token_at
from outrider.proposers.lookup.suffix_tree import EMPTY, Mode, Speculation

__all__ = ["CorpusIndex"]

# Rows of the work arrays. The first two, and the first, hold the result.
TOKENS, PARENTS, NEW_TOKENS, NEW_PARENTS, FROM, TO, DEPTH, PARENT = range(8)
PROBS, NEW_PROBS, FRONT_PROB = range(3)
FRONTIER = 256
"""Most candidates of a tree that are waiting."""
FINEST = 1024
"""Runs shorter than this part of the matches are not looked for, whatever the least probability."""


@final
class CorpusIndex:
    """Counts of all strings of up to `depth` tokens in a fixed set of documents.

    Args:
        tokens_N: the documents' token ids, each document followed by `SEPARATOR`.
        suffixes_N: their order (`suffix_order`).
        depth: tokens by which the suffixes are sorted: a match and its draft together are no longer.
        vocab_size: ids from here on are never drafted.
    """

    def __init__(self, tokens_N: Int32Array, suffixes_N: Int32Array, depth: int, vocab_size: int) -> None:
        self.tokens_N, self.suffixes_N = tokens_N, suffixes_N
        self.depth = depth
        self.vocab_size = vocab_size
        self._ints = np.empty((8, FRONTIER), np.int32)
        self._floats = np.empty((3, FRONTIER), np.float32)

    def count(self, tokens: Sequence[int] | Int32Array) -> int:
        """Count the string `tokens`, at most `depth` long; overlaps count."""
        low, high = interval(self.tokens_N, self.suffixes_N, as_tokens(tokens), 0, len(tokens))
        return high - low

    def speculate(
        self,
        context: Sequence[int] | Int32Array,
        max_spec_tokens: int,
        factor: float = 1.0,
        offset: float = 0.0,
        min_token_prob: float = 0.1,
        mode: Mode = "path",
        *,
        max_match: int,
        floor: float = 0.0,
    ) -> Speculation:
        """Draft the likeliest continuation of `context`, as `SuffixTree.speculate` does.

        Args:
            max_match: the longest match, in tokens.
            floor: a draft whose score is not above it is returned empty.
        """
        tokens = as_tokens(context)
        count, match_length, score = _speculate(
            self.tokens_N,
            self.suffixes_N,
            self.vocab_size,
            tokens,
            self.depth,
            min(max_match, self.depth - 1, len(tokens)),
            min(max_spec_tokens, FRONTIER),
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
        ints, floats = self._ints[:2, :count].copy(), self._floats[PROBS, :count].copy()
        return Speculation(ints[TOKENS], ints[PARENTS], floats, score, match_length)


@compiled
def _speculate(
    tokens: Int32Array,
    suffixes: Int32Array,
    vocab_size: int,
    context: Int32Array,
    depth: int,
    max_match: int,
    max_tokens: int,
    factor: float,
    offset: float,
    min_token_prob: float,
    as_tree: bool,
    floor: float,
    ints: Int32Array,
    floats: Float32Array,
) -> tuple[int, int, float]:
    """Write the best draft that scores above `floor`; return its number of tokens, its match length and its score."""
    best, best_count, best_length = float32(floor), 0, 0
    least = float32(min_token_prob)
    for length in range(longest(tokens, suffixes, context, max_match), 0, -1):
        bound = min(max_tokens, int(length * factor + offset + 1e-6))
        # A token scores at most 1, so no shorter match can score more.
        if bound <= best:
            break
        low, high = interval(tokens, suffixes, context, len(context) - length, length)
        if low >= high:  # only in a damaged file: a shorter end occurs wherever a longer one does
            continue
        if as_tree:
            count = _draft_tree(tokens, suffixes, vocab_size, low, high, length, depth, bound, least, ints, floats)
        else:
            count = _draft_path(tokens, suffixes, vocab_size, low, high, length, depth, bound, least, ints, floats)
        score = float32(0.0)
        for k in range(count):
            score += floats[NEW_PROBS, k]
        if score > best:
            best, best_count, best_length = score, count, length
            for k in range(count):
                ints[TOKENS, k], ints[PARENTS, k] = ints[NEW_TOKENS, k], ints[NEW_PARENTS, k]
                floats[PROBS, k] = floats[NEW_PROBS, k]
    return best_count, best_length, float(best)


@inlined
def _least_count(size: int, prob: float, least: float) -> int:
    """Return the length of the shortest run worth looking at, of `size` suffixes with a path of this probability."""
    return max(1, int(least / prob * size) - 1, size // FINEST)


@inlined
def _draft_path(
    tokens: Int32Array,
    suffixes: Int32Array,
    vocab_size: int,
    low: int,
    high: int,
    depth: int,
    deepest: int,
    bound: int,
    least: float,
    ints: Int32Array,
    floats: Float32Array,
) -> int:
    prob = float32(1.0)
    most = min(bound, deepest - depth)
    for count in range(most):
        size = high - low
        best_low, best_high = high, high
        start, end = next_run(tokens, suffixes, vocab_size, low, high, depth, _least_count(size, prob, least))
        while start < end:
            if end - start > best_high - best_low:
                best_low, best_high = start, end
            # A later run must be longer than the best.
            start, end = next_run(tokens, suffixes, vocab_size, end, high, depth, best_high - best_low + 1)
        share = prob * (float32(best_high - best_low) / float32(size))
        if best_low == best_high or share < least:
            return count
        ints[NEW_TOKENS, count] = token_at(tokens, suffixes, best_low, depth)
        ints[NEW_PARENTS, count] = count - 1
        floats[NEW_PROBS, count] = share
        low, high, prob = best_low, best_high, share
        depth += 1
    return most


@inlined
def _draft_tree(
    tokens: Int32Array,
    suffixes: Int32Array,
    vocab_size: int,
    low: int,
    high: int,
    depth: int,
    deepest: int,
    bound: int,
    least: float,
    ints: Int32Array,
    floats: Float32Array,
) -> int:
    prob, parent = float32(1.0), -1
    count = size = 0
    while True:
        shortest = _least_count(high - low, prob, least)
        start = low if depth < deepest else high
        while start < high:
            start, end = next_run(tokens, suffixes, vocab_size, start, high, depth, shortest)
            share = prob if end - start == high - low else prob * float32(end - start) / float32(high - low)
            if start < end and share >= least:
                size = _push(start, end, depth, parent, share, bound - count, size, ints, floats)
            start = end
        if size == 0 or count == bound:
            return count
        size -= 1
        low, high, depth, prob = ints[FROM, size], ints[TO, size], ints[DEPTH, size], floats[FRONT_PROB, size]
        ints[NEW_TOKENS, count] = token_at(tokens, suffixes, low, depth)
        ints[NEW_PARENTS, count] = ints[PARENT, size]
        floats[NEW_PROBS, count] = prob
        parent = count
        count += 1
        depth += 1


@inlined
def _push(
    low: int,
    high: int,
    depth: int,
    parent: int,
    prob: float,
    capacity: int,
    size: int,
    ints: Int32Array,
    floats: Float32Array,
) -> int:
    """Insert a candidate; keep the best `capacity`, rising by probability, of equals the earlier above."""
    place = size
    while place > 0 and floats[FRONT_PROB, place - 1] >= prob:
        place -= 1
    if size < capacity:
        for k in range(size, place, -1):
            _move(k - 1, k, ints, floats)
        size += 1
    elif place > 0:
        place -= 1
        for k in range(place):
            _move(k + 1, k, ints, floats)
    else:
        return size
    ints[FROM, place], ints[TO, place], ints[DEPTH, place], ints[PARENT, place] = low, high, depth, parent
    floats[FRONT_PROB, place] = prob
    return size


@inlined
def _move(source: int, target: int, ints: Int32Array, floats: Float32Array) -> None:
    for row in (FROM, TO, DEPTH, PARENT):
        ints[row, target] = ints[row, source]
    floats[FRONT_PROB, target] = floats[FRONT_PROB, source]
