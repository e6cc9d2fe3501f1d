"""Sibling order in a counted suffix tree: falling counts, ties by recency, constant time per change.

Siblings of equal count form a run (see `suffix_nodes`). A node whose count rises to c + 1 goes before the run of c + 1,
one whose count falls to c - 1 before the run of c - 1, and a new one before the run of 1: the order is always
(count, time of the last change), both falling.

Arctic Inference breaks ties by a history of its own (a node joins the front of the next run if it led its old one, else
the back); with that rule in place of this one, path drafts are equal token for token. Recency is accepted a little more
often on source code and prose.

Example: children `x:3 y:2 z:2`; counting z gives `z:3 x:3 y:2`, counting y then gives `y:3 z:3 x:3`.
"""

from outrider.kernels.compiled import inlined
from outrider.proposers.lookup.suffix_nodes import (
    AFTER,
    BEFORE,
    COUNT,
    FREE_RUN,
    HEAD,
    NONE,
    PARENT,
    RUN,
    RUN_HEAD,
    RUN_TAIL,
    TAIL,
    TOKEN,
    TOP_RUN,
    Store,
    table_add,
    table_remove,
)

__all__ = ["add_child", "add_only_child", "drop_child", "forget_run", "lower_count", "raise_count", "replace_child"]


@inlined
def add_child(s: Store, node: int) -> None:
    """Enter a new node of count 1 among its parent's children and in the child table."""
    tail = s.nodes[s.nodes[node, PARENT], TAIL]
    if tail != NONE and s.nodes[tail, COUNT] == s.nodes[node, COUNT]:
        _join_run(s, node, s.nodes[tail, RUN])
    else:
        _link_before(s, node, NONE)
        _open_run(s, node)
    table_add(s, node)


@inlined
def add_only_child(s: Store, node: int) -> None:
    """Make `node` the only child of its parent, which has none linked; enter it in the child table."""
    s.nodes[s.nodes[node, PARENT], HEAD] = s.nodes[s.nodes[node, PARENT], TAIL] = NONE
    _link_before(s, node, NONE)
    _open_run(s, node)
    table_add(s, node)


@inlined
def drop_child(s: Store, node: int) -> None:
    """Remove `node` from its parent's children and from the child table."""
    _unlink(s, node)
    table_remove(s, node)


@inlined
def replace_child(s: Store, old: int, new: int) -> None:
    """Put `new`, linked to nothing, in the place of `old`: parent, first token and rank; their counts are equal."""
    table_remove(s, old)
    parent, run = s.nodes[old, PARENT], s.nodes[old, RUN]
    before, after = s.nodes[old, BEFORE], s.nodes[old, AFTER]
    s.nodes[new, PARENT], s.nodes[new, TOKEN], s.nodes[new, RUN] = parent, s.nodes[old, TOKEN], run
    _set_before(s, parent, after, new)
    _set_after(s, parent, before, new)
    s.nodes[new, BEFORE], s.nodes[new, AFTER] = before, after
    if s.nodes[run, RUN_HEAD] == old:
        s.nodes[run, RUN_HEAD] = new
    if s.nodes[run, RUN_TAIL] == old:
        s.nodes[run, RUN_TAIL] = new
    table_add(s, new)


@inlined
def forget_run(s: Store, node: int) -> None:
    """Free the run of an only child that is about to take another place."""
    _free_run(s, s.nodes[node, RUN])


@inlined
def raise_count(s: Store, node: int) -> None:
    """Count one more suffix through `node` and keep the siblings in order."""
    count = s.nodes[node, COUNT] + 1
    head = s.nodes[s.nodes[node, RUN], RUN_HEAD]
    above = s.nodes[head, BEFORE]
    if above == NONE and head == node and s.nodes[node, AFTER] == NONE:
        s.nodes[node, COUNT] = count  # an only child
        return
    where = s.nodes[node, AFTER] if head == node else head
    _unlink(s, node)
    s.nodes[node, COUNT] = count
    if above != NONE and s.nodes[above, COUNT] == count:
        _join_run(s, node, s.nodes[above, RUN])
    else:
        _link_before(s, node, where)
        _open_run(s, node)


@inlined
def lower_count(s: Store, node: int) -> None:
    """Count one suffix less through `node`, whose count stays positive, and keep the siblings in order."""
    count = s.nodes[node, COUNT] - 1
    below = s.nodes[s.nodes[s.nodes[node, RUN], RUN_TAIL], AFTER]
    _unlink(s, node)
    s.nodes[node, COUNT] = count
    if below != NONE and s.nodes[below, COUNT] == count:
        _join_run(s, node, s.nodes[below, RUN])
    else:
        _link_before(s, node, below)
        _open_run(s, node)


@inlined
def _open_run(s: Store, node: int) -> None:
    run = s.counters[FREE_RUN]
    if run == NONE:
        run = s.counters[TOP_RUN]
        s.counters[TOP_RUN] = run + 1
    else:
        s.counters[FREE_RUN] = s.nodes[run, RUN_HEAD]
    s.nodes[run, RUN_HEAD] = s.nodes[run, RUN_TAIL] = node
    s.nodes[node, RUN] = run


@inlined
def _free_run(s: Store, run: int) -> None:
    s.nodes[run, RUN_HEAD] = s.counters[FREE_RUN]
    s.counters[FREE_RUN] = run


@inlined
def _join_run(s: Store, node: int, run: int) -> None:
    _link_before(s, node, s.nodes[run, RUN_HEAD])
    s.nodes[run, RUN_HEAD] = node
    s.nodes[node, RUN] = run


@inlined
def _link_before(s: Store, node: int, other: int) -> None:
    """Link `node` before its sibling `other`, or last if that is NONE."""
    parent = s.nodes[node, PARENT]
    before = s.nodes[parent, TAIL] if other == NONE else s.nodes[other, BEFORE]
    s.nodes[node, BEFORE], s.nodes[node, AFTER] = before, other
    _set_after(s, parent, before, node)
    _set_before(s, parent, other, node)


@inlined
def _unlink(s: Store, node: int) -> None:
    """Remove `node` from the list and from its run."""
    parent, run = s.nodes[node, PARENT], s.nodes[node, RUN]
    before, after = s.nodes[node, BEFORE], s.nodes[node, AFTER]
    # The last member takes its run with it.
    if s.nodes[run, RUN_HEAD] == s.nodes[run, RUN_TAIL]:
        _free_run(s, run)
    elif s.nodes[run, RUN_HEAD] == node:
        s.nodes[run, RUN_HEAD] = after
    elif s.nodes[run, RUN_TAIL] == node:
        s.nodes[run, RUN_TAIL] = before
    _set_after(s, parent, before, after)
    _set_before(s, parent, after, before)


@inlined
def _set_after(s: Store, parent: int, node: int, after: int) -> None:
    """Let `after` follow `node`, or be the head if that is NONE."""
    if node == NONE:
        s.nodes[parent, HEAD] = after
    else:
        s.nodes[node, AFTER] = after


@inlined
def _set_before(s: Store, parent: int, node: int, before: int) -> None:
    """Let `before` precede `node`, or be the tail if that is NONE."""
    if node == NONE:
        s.nodes[parent, TAIL] = before
    else:
        s.nodes[node, BEFORE] = before
