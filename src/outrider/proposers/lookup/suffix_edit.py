"""Growing and shrinking a counted suffix tree, one suffix at a time.

The tree is a multiset of suffixes: one per token position, cut at `max_depth` tokens. Appending a token starts a new
suffix and lengthens the last `max_depth` - 1 ones; each ends at a node of its own, so lengthening is one child lookup
and a constant amount of rewriting. Removing a sequence removes its suffixes one by one.

The shape is kept minimal: a node other than the root has two children, or one and a suffix that ends there, or a suffix
that ends there and no child. So a tree of T suffixes has at most 2 T nodes, counts along an edge are equal, and COUNT /
COUNT of the parent is the share of the string's occurrences that were followed so.

Example, depth 3, after `a b a`: suffixes `aba`, `ba`, `a`. Node `a` counts 2 with the child `ba` counting 1; node `ba`
counts 1. Appending `b` lengthens `ba` to `bab` (a leaf grows), lengthens `a` into `ab` (the node `a` becomes `ab`,
count 2, child `a`), and starts `b`, which splits the leaf `bab`.
"""

from outrider.kernels.compiled import Int32Array, compiled, inlined, int32
from outrider.proposers.lookup.suffix_nodes import (
    CELL_NODE,
    CELL_TOKEN,
    COUNT,
    DEPTH,
    ENDS,
    FIRST,
    HEAD,
    LENGTH,
    NONE,
    PARENT,
    ROOT,
    TAIL,
    TOKEN,
    WINDOW,
    WITNESS,
    Store,
    advance,
    clear,
    find_child,
    following,
    free_node,
    free_positions,
    link_end,
    new_node,
    new_position,
    table_add,
    table_remove,
    unlink_end,
)
from outrider.proposers.lookup.suffix_siblings import (
    add_child,
    add_only_child,
    drop_child,
    forget_run,
    lower_count,
    raise_count,
    replace_child,
)

__all__ = ["clear_tree", "extend_sequence", "locate", "remove_sequence", "token_at"]


@compiled
def clear_tree(
    nodes: Int32Array,
    cells: Int32Array,
    blocks: Int32Array,
    sequences: Int32Array,
    buckets: Int32Array,
    counters: Int32Array,
) -> None:
    """Make the arrays an empty tree."""
    clear(Store(nodes, cells, blocks, sequences, buckets, counters))


@compiled
def extend_sequence(
    nodes: Int32Array,
    cells: Int32Array,
    blocks: Int32Array,
    sequences: Int32Array,
    buckets: Int32Array,
    counters: Int32Array,
    sequence: int,
    tokens: Int32Array,
    max_depth: int,
) -> None:
    """Append `tokens` to `sequence`: at most `max_depth` suffixes to lengthen for each."""
    s = Store(nodes, cells, blocks, sequences, buckets, counters)
    for token in tokens:
        last = new_position(s, sequence)
        cells[last, CELL_TOKEN] = token
        nodes[ROOT, COUNT] += 1
        link_end(s, ROOT, last)
        length = sequences[sequence, LENGTH]
        if length > max_depth:
            sequences[sequence, WINDOW] = following(s, sequences[sequence, WINDOW])
        # The longest suffix first, the new token alone last.
        position = sequences[sequence, WINDOW]
        for depth in range(min(length, max_depth), 0, -1):
            _lengthen(s, position, depth, token)
            if depth > 1:
                position = following(s, position)


@compiled
def remove_sequence(
    nodes: Int32Array,
    cells: Int32Array,
    blocks: Int32Array,
    sequences: Int32Array,
    buckets: Int32Array,
    counters: Int32Array,
    sequence: int,
) -> None:
    """Remove all suffixes of `sequence` and free its memory."""
    s = Store(nodes, cells, blocks, sequences, buckets, counters)
    position = sequences[sequence, FIRST]
    for left in range(sequences[sequence, LENGTH], 0, -1):
        _remove_suffix(s, position)
        if left > 1:
            position = following(s, position)
    free_positions(s, sequence)


@inlined
def token_at(s: Store, node: int, depth: int) -> int:
    """Return token number `depth` (from 0) of the string of `node`."""
    return int32(s.cells[advance(s, s.nodes[node, WITNESS], depth), CELL_TOKEN])


@inlined
def locate(s: Store, tokens: Int32Array, length: int) -> int:
    """Find the node on whose edge the string of the last `length` tokens ends; NONE if it is not in the tree."""
    node = ROOT
    position = NONE
    for depth in range(length):
        token = tokens[len(tokens) - length + depth]
        if depth == s.nodes[node, DEPTH]:
            node = find_child(s, node, token)
            if node == NONE:
                return NONE
            position = advance(s, s.nodes[node, WITNESS], depth)
        elif s.cells[position, CELL_TOKEN] != token:
            return NONE
        if depth + 1 < s.nodes[node, DEPTH]:
            position = following(s, position)
    return node


@inlined
def _lengthen(s: Store, position: int, depth: int, token: int) -> None:
    """Let the suffix from `position` go on with `token`, its token number `depth` counted from 1."""
    end = s.cells[position, CELL_NODE]
    child = NONE if s.nodes[end, HEAD] == NONE else find_child(s, end, token)
    if child == NONE:
        # The leaf belongs to this suffix alone: its edge grows in place.
        if end != ROOT and s.nodes[end, COUNT] == 1:
            s.nodes[end, DEPTH] = depth
        else:
            child = new_node(s, end, token, depth, position, 1)
            add_child(s, child)
            _move_end(s, position, child)
    # All suffixes through `end` but this one pass through `child`.
    elif end != ROOT and s.nodes[end, COUNT] == s.nodes[child, COUNT] + 1:
        _follow_only_child(s, position, end, child, depth)
    else:
        if s.nodes[child, DEPTH] > depth:
            child = _split(s, child, depth)
        raise_count(s, child)
        s.nodes[child, WITNESS] = position
        _move_end(s, position, child)


@inlined
def _follow_only_child(s: Store, position: int, end: int, child: int, depth: int) -> None:
    """Move `end` down the edge to its only child by one token, since all suffixes through it go on there."""
    if s.nodes[child, DEPTH] == depth:
        s.nodes[child, COUNT] += 1
        unlink_end(s, position)
        _hoist(s, end, child)
        link_end(s, child, position)
        s.nodes[child, WITNESS] = position
    else:
        s.nodes[end, DEPTH] = depth
        s.nodes[end, WITNESS] = position
        table_remove(s, child)
        s.nodes[child, TOKEN] = token_at(s, child, depth)
        table_add(s, child)


@inlined
def _split(s: Store, node: int, depth: int) -> int:
    """Cut the edge into `node` at `depth`; return the new upper node."""
    parent, token = s.nodes[node, PARENT], s.nodes[node, TOKEN]
    upper = new_node(s, parent, token, depth, s.nodes[node, WITNESS], s.nodes[node, COUNT])
    replace_child(s, node, upper)
    s.nodes[node, PARENT] = upper
    s.nodes[node, TOKEN] = token_at(s, node, depth)
    add_only_child(s, node)
    return upper


@inlined
def _hoist(s: Store, node: int, child: int) -> None:
    """Put `child`, the only child of `node` and of equal count, in its place and free `node`."""
    forget_run(s, child)
    table_remove(s, child)
    replace_child(s, node, child)
    free_node(s, node)


@inlined
def _move_end(s: Store, position: int, node: int) -> None:
    unlink_end(s, position)
    link_end(s, node, position)


@inlined
def _remove_suffix(s: Store, position: int) -> None:
    end = s.cells[position, CELL_NODE]
    unlink_end(s, position)
    s.nodes[ROOT, COUNT] -= 1
    node = end
    while node != ROOT:
        parent = s.nodes[node, PARENT]
        if s.nodes[node, COUNT] > 1:
            lower_count(s, node)
        else:
            drop_child(s, node)
            free_node(s, node)
            end = parent
        node = parent
    # An inner node with one child and no end would not be minimal.
    if end != ROOT and s.nodes[end, ENDS] == NONE and s.nodes[end, HEAD] == s.nodes[end, TAIL]:
        child = s.nodes[end, HEAD]
        _hoist(s, end, child)
        end = child
    _replace_witness(s, end, position)


@inlined
def _replace_witness(s: Store, node: int, position: int) -> None:
    """Give every node from `node` up to the root another witness than the suffix at `position`, which is removed."""
    other = NONE
    while node != ROOT:
        if s.nodes[node, WITNESS] == position:
            if other == NONE:
                # Any suffix through the node will do: follow first children to an end.
                below = node
                while s.nodes[below, ENDS] == NONE:
                    below = s.nodes[below, HEAD]
                other = s.nodes[below, ENDS]
            s.nodes[node, WITNESS] = other
        node = s.nodes[node, PARENT]
