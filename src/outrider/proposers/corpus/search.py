"""Search among sorted suffixes: the places of a string, and the runs of what follows it.

The arrays may lie in a file that is damaged. Every place is checked before it is used: a wrong one gives a wrong draft,
never a wrong read, and every search ends.

Example: of the sorted suffixes `a b c`, `a b d`, `b c`, `b d`, the interval of `a b` is [0, 2); the runs of the third
token there are c at 0 and d at 1.
"""

from outrider.kernels.compiled import Int32Array, compiled, inlined, int32
from outrider.proposers.corpus.order import SEPARATOR

__all__ = ["interval", "longest", "next_run", "token_at"]


@inlined
def token_at(tokens: Int32Array, suffixes: Int32Array, place: int, ahead: int) -> int:
    """Return the token `ahead` of the suffix at `place`; a separator behind the end, and for a damaged place."""
    start = suffixes[place]
    if start < 0 or start + ahead >= len(tokens):
        return int32(SEPARATOR)
    return int32(tokens[start + ahead])


@inlined
def _compare(tokens: Int32Array, suffixes: Int32Array, place: int, context: Int32Array, begin: int, length: int) -> int:
    """Compare a suffix with `length` tokens of the context: negative where it sorts before, 0 where it begins so."""
    for k in range(length):
        token = token_at(tokens, suffixes, place, k)
        if token != context[begin + k]:
            return -1 if token < context[begin + k] else 1
    return 0


@compiled
def interval(tokens: Int32Array, suffixes: Int32Array, context: Int32Array, begin: int, length: int) -> tuple[int, int]:
    """Return the first and the last place, exclusive, of the suffixes that begin with these tokens of the context."""
    low, high = 0, len(suffixes)
    while low < high:
        middle = (low + high) // 2
        if _compare(tokens, suffixes, middle, context, begin, length) < 0:
            low = middle + 1
        else:
            high = middle
    first, high = low, len(suffixes)
    while low < high:
        middle = (low + high) // 2
        if _compare(tokens, suffixes, middle, context, begin, length) <= 0:
            low = middle + 1
        else:
            high = middle
    return first, low


@inlined
def longest(tokens: Int32Array, suffixes: Int32Array, context: Int32Array, max_match: int) -> int:
    """Return the length of the longest end of the context that occurs; every shorter one occurs too."""
    found, above = 0, max_match + 1
    while above - found > 1:
        length = (found + above) // 2
        first, last = interval(tokens, suffixes, context, len(context) - length, length)
        if last > first:
            found = length
        else:
            above = length
    return found


@inlined
def _run_end(tokens: Int32Array, suffixes: Int32Array, place: int, high: int, depth: int) -> int:
    """Return where the run of suffixes ends that have the token of `place` at `depth`."""
    token = token_at(tokens, suffixes, place, depth)
    # Doubling steps, then halving: a run of r suffixes costs 2 log r.
    low, step = place, 1
    while low + step < high and token_at(tokens, suffixes, low + step, depth) == token:
        low += step
        step *= 2
    high = min(high, low + step)
    while high - low > 1:
        middle = (low + high) // 2
        if token_at(tokens, suffixes, middle, depth) == token:
            low = middle
        else:
            high = middle
    return high


@inlined
def _run_start(tokens: Int32Array, suffixes: Int32Array, low: int, place: int, depth: int) -> int:
    """Return where the run of `place` begins, which is behind `low`."""
    token = token_at(tokens, suffixes, place, depth)
    while place - low > 1:
        middle = (low + place) // 2
        if token_at(tokens, suffixes, middle, depth) == token:
            place = middle
        else:
            low = middle
    return place


@compiled
def next_run(
    tokens: Int32Array, suffixes: Int32Array, vocab_size: int, place: int, high: int, depth: int, least: int
) -> tuple[int, int]:
    """Return the next run of at least `least` suffixes with one token at `depth`, from `place` on; else `high` twice.

    A run of `least` suffixes that begins at `place` covers `place + least - 1` as well. If the tokens there differ, the
    next run that can be long enough is the one that covers that place.
    """
    while place + least <= high:
        token = token_at(tokens, suffixes, place, depth)
        if least > 1 and token_at(tokens, suffixes, place + least - 1, depth) != token:
            place = _run_start(tokens, suffixes, place, place + least - 1, depth)
            continue
        end = _run_end(tokens, suffixes, place, high, depth)
        if 0 <= token < vocab_size:
            return place, end
        place = end
    return high, high
