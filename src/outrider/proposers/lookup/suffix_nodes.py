"""The memory of a counted suffix tree: node rows, sibling order, the child table and the token cells.

Everything is int32 in growable arrays, passed as one `Store`; nodes, positions and sequences are row numbers.

- `nodes` [node, column]: row 0 is the root. `COUNT` suffixes pass through or end at a node. One of them starts at
  position `WITNESS`, so the edge into the node reads `witness[DEPTH of parent : DEPTH]`.
- Siblings form a list in falling order of count, those of equal count a *run* with a record of its two ends, so a count
  changes by one in constant time. Of equal counts the one changed last is first.
- `buckets` heads the chains of a hash table (parent, first token) -> child that grows one bucket per insertion (linear
  hashing), so no step rehashes the whole table.
- `cells` [position, column]: each token, and the node at which the suffix starting there ends, in linked `blocks`.
- `sequences` [sequence, column]: its first and last position, its length, and the oldest suffix that still grows.

Example: after `a b a` at depth 3, the node `a` has count 2, and its child `ba` count 1.
"""

from typing import NamedTuple

from outrider.kernels.compiled import Int32Array, inlined, int32

__all__ = ["BLOCK", "NODE_COLUMNS", "NUM_COUNTERS", "Store"]

ROOT = int32(0)
NONE = int32(-1)
BLOCK = 64
SHIFT = 6

# Columns of `nodes`.
PARENT, TOKEN, DEPTH, WITNESS, COUNT, HEAD, TAIL, AFTER, BEFORE, RUN, CHAIN, ENDS, RUN_HEAD, RUN_TAIL = range(14)
NODE_COLUMNS = 16  # one cache line
# Columns of `cells`, `sequences` and `blocks`.
CELL_TOKEN, CELL_NODE, CELL_AFTER, CELL_BEFORE = range(4)
FIRST, LAST, LENGTH, WINDOW = range(4)
# Entries of `counters`: free lists, rows ever used, rows in use, and the size of the hash table.
FREE_NODE, TOP_NODE, FREE_RUN, TOP_RUN, FREE_BLOCK, TOP_BLOCK, NUM_NODES, NUM_BUCKETS, MASK = range(9)
NUM_COUNTERS = 9


class Store(NamedTuple):
    """The arrays of one tree; columns are named above."""

    nodes: Int32Array
    cells: Int32Array
    blocks: Int32Array
    sequences: Int32Array
    buckets: Int32Array
    counters: Int32Array


@inlined
def clear(s: Store) -> None:
    """Make the store an empty tree: the root alone."""
    s.counters[:] = 0
    s.counters[FREE_NODE] = s.counters[FREE_RUN] = s.counters[FREE_BLOCK] = NONE
    s.counters[NUM_BUCKETS] = 1
    s.buckets[0] = NONE
    new_node(s, NONE, NONE, 0, NONE, 0)


@inlined
def new_node(s: Store, parent: int, token: int, depth: int, witness: int, count: int) -> int:
    """Allocate a row for a node; it is linked to nothing yet."""
    node: int = s.counters[FREE_NODE]
    if node == NONE:
        node = s.counters[TOP_NODE]
        s.counters[TOP_NODE] = node + 1
    else:
        s.counters[FREE_NODE] = s.nodes[node, CHAIN]
    s.counters[NUM_NODES] += 1
    s.nodes[node, PARENT], s.nodes[node, TOKEN] = parent, token
    s.nodes[node, DEPTH], s.nodes[node, WITNESS], s.nodes[node, COUNT] = depth, witness, count
    s.nodes[node, HEAD] = s.nodes[node, TAIL] = s.nodes[node, ENDS] = NONE
    return node


@inlined
def free_node(s: Store, node: int) -> None:
    """Free the row of a node that is linked to nothing any more."""
    s.nodes[node, CHAIN] = s.counters[FREE_NODE]
    s.counters[FREE_NODE] = node
    s.counters[NUM_NODES] -= 1


# --- positions ---------------------------------------------------------------------------------------------------


@inlined
def advance(s: Store, position: int, steps: int) -> int:
    """Return the position `steps` tokens later in the same sequence."""
    inside = (position & (BLOCK - 1)) + steps
    block = position >> SHIFT
    while inside >= BLOCK:
        block = s.blocks[block]
        inside -= BLOCK
    return int32((block << SHIFT) + inside)


@inlined
def following(s: Store, position: int) -> int:
    """Return the position one token later in the same sequence."""
    if (position + 1) & (BLOCK - 1):
        return int32(position + 1)
    return int32(s.blocks[position >> SHIFT] << SHIFT)


@inlined
def new_position(s: Store, sequence: int) -> int:
    """Allocate the position of one more token at the end of `sequence`."""
    length, last = s.sequences[sequence, LENGTH], s.sequences[sequence, LAST]
    position = int32(last + 1)
    if length & (BLOCK - 1) == 0:
        block = s.counters[FREE_BLOCK]
        if block == NONE:
            block = s.counters[TOP_BLOCK]
            s.counters[TOP_BLOCK] = block + 1
        else:
            s.counters[FREE_BLOCK] = s.blocks[block]
        s.blocks[block] = NONE
        position = int32(block << SHIFT)
        if length:
            s.blocks[last >> SHIFT] = block
        else:
            s.sequences[sequence, FIRST] = s.sequences[sequence, WINDOW] = position
    s.sequences[sequence, LAST] = position
    s.sequences[sequence, LENGTH] = length + 1
    return position


@inlined
def free_positions(s: Store, sequence: int) -> None:
    """Free all blocks of `sequence` and make it empty."""
    if s.sequences[sequence, LENGTH]:
        s.blocks[s.sequences[sequence, LAST] >> SHIFT] = s.counters[FREE_BLOCK]
        s.counters[FREE_BLOCK] = s.sequences[sequence, FIRST] >> SHIFT
    s.sequences[sequence, LENGTH] = 0


@inlined
def link_end(s: Store, node: int, position: int) -> None:
    """Record that the suffix starting at `position` ends at `node`."""
    first = s.nodes[node, ENDS]
    s.cells[position, CELL_NODE] = node
    s.cells[position, CELL_AFTER] = first
    s.cells[position, CELL_BEFORE] = NONE
    if first != NONE:
        s.cells[first, CELL_BEFORE] = position
    s.nodes[node, ENDS] = position


@inlined
def unlink_end(s: Store, position: int) -> None:
    """Record that the suffix starting at `position` no longer ends at its node."""
    before, after = s.cells[position, CELL_BEFORE], s.cells[position, CELL_AFTER]
    if before == NONE:
        s.nodes[s.cells[position, CELL_NODE], ENDS] = after
    else:
        s.cells[before, CELL_AFTER] = after
    if after != NONE:
        s.cells[after, CELL_BEFORE] = before


# --- the child table -----------------------------------------------------------------------------------------------


@inlined
def bucket_of(s: Store, parent: int, token: int) -> int:
    """Hash a child to its bucket: linear hashing uses one bit fewer for buckets that do not exist yet."""
    h = (parent * 0x9E3779B1 + token * 0x85EBCA6B) * 0x27D4EB2F
    h ^= h >> 29
    bucket: int = h & s.counters[MASK]
    if bucket >= s.counters[NUM_BUCKETS]:
        bucket &= s.counters[MASK] >> 1
    return bucket


@inlined
def find_child(s: Store, parent: int, token: int) -> int:
    """Find the child of `parent` whose edge starts with `token`, or NONE."""
    node: int = s.buckets[bucket_of(s, parent, token)]
    while node != NONE and not (s.nodes[node, PARENT] == parent and s.nodes[node, TOKEN] == token):
        node = s.nodes[node, CHAIN]
    return node


@inlined
def table_add(s: Store, node: int) -> None:
    """Enter `node` under its PARENT and TOKEN."""
    if s.counters[NUM_NODES] > s.counters[NUM_BUCKETS]:
        _split_bucket(s)
    bucket = bucket_of(s, s.nodes[node, PARENT], s.nodes[node, TOKEN])
    s.nodes[node, CHAIN] = s.buckets[bucket]
    s.buckets[bucket] = node


@inlined
def _split_bucket(s: Store) -> None:
    new = s.counters[NUM_BUCKETS]
    if new > s.counters[MASK]:
        s.counters[MASK] = 2 * s.counters[MASK] + 1
    old = new & (s.counters[MASK] >> 1)
    s.counters[NUM_BUCKETS] = new + 1
    node = s.buckets[old]
    s.buckets[old] = s.buckets[new] = NONE
    while node != NONE:
        rest = s.nodes[node, CHAIN]
        bucket = bucket_of(s, s.nodes[node, PARENT], s.nodes[node, TOKEN])
        s.nodes[node, CHAIN] = s.buckets[bucket]
        s.buckets[bucket] = node
        node = rest


@inlined
def table_remove(s: Store, node: int) -> None:
    """Remove `node` from the table; its PARENT and TOKEN are still those it was entered under."""
    bucket = bucket_of(s, s.nodes[node, PARENT], s.nodes[node, TOKEN])
    before = s.buckets[bucket]
    if before == node:
        s.buckets[bucket] = s.nodes[node, CHAIN]
        return
    while s.nodes[before, CHAIN] != node:
        before = s.nodes[before, CHAIN]
    s.nodes[before, CHAIN] = s.nodes[node, CHAIN]
