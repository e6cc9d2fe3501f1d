"""Suffix arrays by prefix doubling: the order of all suffixes of a token sequence, by their first `depth` tokens.

Suffixes are sorted by their first w tokens; the pair (rank of i, rank of i + w) then sorts them by 2w. The first pass
packs as many tokens as fit into 62 bits, so that a depth of 64 takes about five sorts (Manber and Myers 1993).

Example: in `b a n a` with depth 4 the suffixes rise as `a`, `a n a`, `b a n a`, `n a`, so the order is 3, 1, 0, 2.
"""

import numpy as np
from numpy.typing import NDArray

from outrider.kernels.compiled import Int32Array
from outrider.records.progress import Listener, Progress, unheard

__all__ = ["SEPARATOR", "suffix_order"]

SEPARATOR = -1
"""Stands behind every document; sorts before every token, as the end of the sequence does."""
MOST_BITS = 62


def suffix_order(tokens_N: Int32Array, depth: int, listen: Listener = unheard) -> Int32Array:
    """Return the starts of all suffixes [N] int32, sorted by their first `depth` tokens.

    Args:
        tokens_N: token ids, at least `SEPARATOR`; fewer than 2**31 of them.
        depth: tokens compared, at least 1.
        listen: called before each sort with the number of tokens that are in order.
    """
    ranks_N = tokens_N.astype(np.int64) - SEPARATOR
    if not len(ranks_N):
        return np.empty(0, np.int32)
    bits = int(ranks_N.max()).bit_length()
    width = max(1, min(depth, MOST_BITS // bits, len(ranks_N)))
    key_N = ranks_N.copy()
    for ahead in range(1, width):
        key_N <<= bits
        key_N[:-ahead] |= ranks_N[ahead:]
    done = 0
    while True:
        listen(Progress(done, depth, "sorting"))
        order_N = np.argsort(key_N)
        last = _rank(key_N, order_N, ranks_N)
        done = min(width, depth)
        if done == depth or last == len(ranks_N):
            listen(Progress(depth, depth, "sorting"))
            return order_N.astype(np.int32)
        key_N = ranks_N << 32
        key_N[:-width] |= ranks_N[width:]
        width *= 2


def _rank(key_N: NDArray[np.int64], order_N: NDArray[np.int64], ranks_N: NDArray[np.int64]) -> int:
    """Write each suffix's rank, from 1, equal keys having equal ranks; return the highest."""
    sorted_N = key_N[order_N]
    steps_N = np.ones(len(sorted_N), np.int64)
    steps_N[1:] = sorted_N[1:] != sorted_N[:-1]
    np.cumsum(steps_N, out=steps_N)
    ranks_N[order_N] = steps_N
    return int(steps_N[-1])
