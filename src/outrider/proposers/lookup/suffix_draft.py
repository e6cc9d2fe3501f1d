"""Drafting from a counted suffix tree: match the end of the context, follow the counts, keep the best-scored match.

For every match length m the last m tokens of the context lead to a place in the tree. From there a draft grows: a token
y after the string w has probability count(w y) / count(w), and along the draft probabilities multiply.

    path:  follow the most frequent child while the probability stays at or above min_token_prob
    tree:  take the most probable candidate token anywhere, repeatedly (ties: the one found first)

At most min(max_tokens, int(m * factor + offset + 1e-6)) tokens. The score is the sum of the probabilities, which is the
expected number of accepted tokens; the highest wins, at equal scores the longest match. Since a score cannot exceed the
number of tokens, match lengths whose bound is not above the best score so far are never drafted.

SuffixDecoding: 2411.04975, section 3; the semantics are those of Arctic Inference. Worked example: after `a b c a b d
a b`, the match `a b` (3 occurrences, the last one ours) offers c and d with 1/3 each, and the later d comes first.
"""

from outrider.kernels.compiled import Float32Array, Int32Array, compiled, float32, inlined
from outrider.proposers.lookup.suffix_edit import locate, token_at
from outrider.proposers.lookup.suffix_nodes import (
    AFTER,
    CELL_NODE,
    CELL_TOKEN,
    COUNT,
    DEPTH,
    HEAD,
    LENGTH,
    NONE,
    WINDOW,
    Store,
    advance,
    following,
)

__all__ = ["FLOAT_ROWS", "INT_ROWS", "copy_tail", "count_string", "speculate"]

# Rows of the integer and float work arrays; one column per token or match length. Rows 0 and 1, 0 are the result.
TOKENS, PARENTS, NEW_TOKENS, NEW_PARENTS, FRONT_NODE, FRONT_DEPTH, FRONT_PARENT, MATCHES = range(8)
PROBS, NEW_PROBS, FRONT_PROB = range(3)
INT_ROWS, FLOAT_ROWS = 8, 3


@compiled
def speculate(
    nodes: Int32Array,
    cells: Int32Array,
    blocks: Int32Array,
    sequences: Int32Array,
    buckets: Int32Array,
    counters: Int32Array,
    sequence: int,
    context: Int32Array,
    max_depth: int,
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
    """Write the best draft that scores above `floor` to the result rows of `ints` and `floats`.

    The context is the end of `sequence` (NONE: of no sequence of this tree) and, where that is too short, of `context`.
    Returns the number of tokens, the match length and the score; (0, 0, `floor`) if there is no such draft.
    """
    s = Store(nodes, cells, blocks, sequences, buckets, counters)
    own = 0 if sequence == NONE else min(max_match, sequences[sequence, LENGTH])
    deepest = _match(s, sequence, own, context, max_depth, max_match, ints[MATCHES])
    best, best_count, best_length = float32(floor), 0, 0
    least = float32(min_token_prob)
    for length in range(deepest, 0, -1):
        bound = min(max_tokens, int(length * factor + offset + 1e-6))
        # A token scores at most 1, so no shorter match can score more.
        if bound <= best:
            break
        node = ints[MATCHES, length]
        if length <= own and nodes[node, COUNT] == 1:
            continue  # the context itself and nothing else
        if as_tree:
            count = _draft_tree(s, node, length, bound, least, ints, floats)
        else:
            count = _draft_path(s, node, length, bound, least, ints, floats)
        score = float32(0.0)
        for k in range(count):
            score += floats[NEW_PROBS, k]
        if score > best:
            best, best_count, best_length = score, count, length
            for k in range(count):
                ints[TOKENS, k], ints[PARENTS, k] = ints[NEW_TOKENS, k], ints[NEW_PARENTS, k]
                floats[PROBS, k] = floats[NEW_PROBS, k]
    return best_count, best_length, float(best)


@compiled
def copy_tail(
    nodes: Int32Array,
    cells: Int32Array,
    blocks: Int32Array,
    sequences: Int32Array,
    buckets: Int32Array,
    counters: Int32Array,
    sequence: int,
    max_depth: int,
    out: Int32Array,
) -> int:
    """Write the last tokens of `sequence`, `max_depth` or all, to `out`; return how many."""
    s = Store(nodes, cells, blocks, sequences, buckets, counters)
    count: int = min(sequences[sequence, LENGTH], max_depth)
    position = sequences[sequence, WINDOW]
    for k in range(count):
        out[k] = cells[position, CELL_TOKEN]
        if k + 1 < count:
            position = following(s, position)
    return count


@compiled
def count_string(
    nodes: Int32Array,
    cells: Int32Array,
    blocks: Int32Array,
    sequences: Int32Array,
    buckets: Int32Array,
    counters: Int32Array,
    tokens: Int32Array,
) -> int:
    """Count the suffixes of the tree that begin with `tokens`."""
    s = Store(nodes, cells, blocks, sequences, buckets, counters)
    node = locate(s, tokens, len(tokens))
    return 0 if node == NONE else nodes[node, COUNT]


@inlined
def _match(
    s: Store, sequence: int, own: int, context: Int32Array, max_depth: int, max_match: int, matches: Int32Array
) -> int:
    """Write the node of each match length to `matches`; return the longest.

    Up to `own` tokens these are the ends of the sequence's own growing suffixes, known without a search.
    """
    if own:
        grown = min(s.sequences[sequence, LENGTH], max_depth)
        position = advance(s, s.sequences[sequence, WINDOW], grown - own)
        for length in range(own, 0, -1):
            matches[length] = s.cells[position, CELL_NODE]
            if length > 1:
                position = following(s, position)
        # Only the context itself: no longer string occurs twice.
        if s.nodes[matches[own], COUNT] == 1:
            return own
    for length in range(own + 1, min(max_match, len(context)) + 1):
        node = locate(s, context, length)
        if node == NONE:
            return length - 1
        matches[length] = node
    return max(own, min(max_match, len(context)))


@inlined
def _draft_path(
    s: Store, node: int, depth: int, max_tokens: int, least: float, ints: Int32Array, floats: Float32Array
) -> int:
    count = 0
    prob = float32(1.0)
    while count < max_tokens and prob >= least:
        if depth < s.nodes[node, DEPTH]:
            ints[NEW_TOKENS, count] = token_at(s, node, depth)
            ints[NEW_PARENTS, count] = count - 1
            floats[NEW_PROBS, count] = prob
            count += 1
            depth += 1
        else:
            child = s.nodes[node, HEAD]
            if child == NONE:
                break
            # The first child is the most frequent one.
            prob *= float32(s.nodes[child, COUNT]) / float32(s.nodes[node, COUNT])
            node = child
    return count


@inlined
def _draft_tree(
    s: Store, node: int, depth: int, max_tokens: int, least: float, ints: Int32Array, floats: Float32Array
) -> int:
    count = 0
    size = _push_next(s, node, depth, count - 1, float32(1.0), max_tokens, count, least, ints, floats)
    while size and count < max_tokens:
        size -= 1
        node, depth, prob = ints[FRONT_NODE, size], ints[FRONT_DEPTH, size] + 1, floats[FRONT_PROB, size]
        ints[NEW_TOKENS, count] = token_at(s, node, depth - 1)
        ints[NEW_PARENTS, count] = ints[FRONT_PARENT, size]
        floats[NEW_PROBS, count] = prob
        count += 1
        size = _push_next(s, node, depth, count - 1, prob, max_tokens - count, size, least, ints, floats)
    return count


@inlined
def _push_next(
    s: Store,
    node: int,
    depth: int,
    parent: int,
    prob: float,
    room: int,
    size: int,
    least: float,
    ints: Int32Array,
    floats: Float32Array,
) -> int:
    """Put the tokens that may follow `depth` tokens of the string of `node` on the frontier; return its new size."""
    if depth < s.nodes[node, DEPTH]:
        return _push(node, depth, parent, prob, room, size, ints, floats) if prob >= least else size
    total = float32(s.nodes[node, COUNT])
    child = s.nodes[node, HEAD]
    for _ in range(room):
        if child == NONE:
            break
        share = prob * float32(s.nodes[child, COUNT]) / total
        if share < least:
            break
        size = _push(child, depth, parent, share, room, size, ints, floats)
        child = s.nodes[child, AFTER]
    return size


@inlined
def _push(
    node: int, depth: int, parent: int, prob: float, room: int, size: int, ints: Int32Array, floats: Float32Array
) -> int:
    """Insert into the frontier, rising by probability, earlier entries above later ones; keep the best `room`."""
    # Insertion from the top; the best entry is the last, and is popped first.
    place = size
    while place > 0 and floats[FRONT_PROB, place - 1] >= prob:
        place -= 1
    if size < room:
        for k in range(size, place, -1):
            _copy_front(k - 1, k, ints, floats)
        size += 1
    elif place > 0:
        place -= 1
        for k in range(place):
            _copy_front(k + 1, k, ints, floats)
    else:
        return size
    ints[FRONT_NODE, place], ints[FRONT_DEPTH, place], ints[FRONT_PARENT, place] = node, depth, parent
    floats[FRONT_PROB, place] = prob
    return size


@inlined
def _copy_front(source: int, target: int, ints: Int32Array, floats: Float32Array) -> None:
    for row in (FRONT_NODE, FRONT_DEPTH, FRONT_PARENT):
        ints[row, target] = ints[row, source]
    floats[FRONT_PROB, target] = floats[FRONT_PROB, source]
