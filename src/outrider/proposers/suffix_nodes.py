"""The memory of a counted suffix tree: node rows, sibling order, the child table and the token cells.

Everything is int32 in a few growable arrays, passed to compiled functions as one `Store`; a node, a token position, a
sequence are row numbers. Freed rows go to free lists and are used again.

- `nodes` [node, column]: row 0 is the root. A node stands for the string that leads to it; `COUNT` is the number of
  suffixes that pass through or end at it. `WITNESS` is the position where one such suffix starts, and `DEPTH` the
  string's length, so the edge into the node reads `witness[DEPTH of parent : DEPTH]` and needs no text of its own.
- Siblings form a list in falling order of count. Those of equal count form a *run* with a record of its two ends
  (`RUN_HEAD`, `RUN_TAIL`, columns of the row that `RUN` names), so a count changes by one in constant time however many
  siblings tie. Among equal counts the one changed last comes first: the most recent guess.
- `buckets` heads the chains of a hash table (parent, first token) -> child that grows one bucket per insertion (linear
  hashing), so no step pays for rehashing the whole table.
- `cells` [position, column] holds each token with the node at which the suffix starting there ends, in a list of that
  node's ends. Positions come in blocks of `BLOCK`, linked by `blocks`, so sequences grow side by side.
- `sequences` [sequence, column]: its first and last position, its length, and the oldest suffix that still grows.
"""

from typing import NamedTuple

from outrider.proposers.compiled import Int32Array, compiled, int32

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


@compiled
def clear(s: Store) -> None:
    """Make the store an empty tree: the root alone."""
    s.counters[:] = 0
    s.counters[FREE_NODE] = s.counters[FREE_RUN] = s.counters[FREE_BLOCK] = NONE
    s.counters[NUM_BUCKETS] = 1
    s.buckets[0] = NONE
    new_node(s, NONE, NONE, 0, NONE, 0)


@compiled
def new_node(s: Store, parent: int, token: int, depth: int, witness: int, count: int) -> int:
    """A row for a node; it is linked to nothing yet."""
    node = s.counters[FREE_NODE]
    if node == NONE:
        node = s.counters[TOP_NODE]
        s.counters[TOP_NODE] = node + 1
    else:
        s.counters[FREE_NODE] = s.nodes[node, CHAIN]
    s.counters[NUM_NODES] += 1
    row = s.nodes[node]
    row[PARENT], row[TOKEN], row[DEPTH], row[WITNESS], row[COUNT] = parent, token, depth, witness, count
    row[HEAD] = row[TAIL] = row[AFTER] = row[BEFORE] = row[RUN] = row[CHAIN] = row[ENDS] = NONE
    return node


@compiled
def free_node(s: Store, node: int) -> None:
    """Give the row back; the node must be linked to nothing any more."""
    s.nodes[node, CHAIN] = s.counters[FREE_NODE]
    s.counters[FREE_NODE] = node
    s.counters[NUM_NODES] -= 1


# --- positions ---------------------------------------------------------------------------------------------------


@compiled
def advance(s: Store, position: int, steps: int) -> int:
    """The position `steps` tokens later in the same sequence."""
    inside = (position & (BLOCK - 1)) + steps
    block = position >> SHIFT
    while inside >= BLOCK:
        block = s.blocks[block]
        inside -= BLOCK
    return int32((block << SHIFT) + inside)


@compiled
def following(s: Store, position: int) -> int:
    """The position one token later in the same sequence."""
    if (position + 1) & (BLOCK - 1):
        return int32(position + 1)
    return int32(s.blocks[position >> SHIFT] << SHIFT)


@compiled
def new_position(s: Store, sequence: int) -> int:
    """Room for one more token at the end of `sequence`."""
    row = s.sequences[sequence]
    if row[LENGTH] % BLOCK:
        row[LAST] += 1
    else:
        block = s.counters[FREE_BLOCK]
        if block == NONE:
            block = s.counters[TOP_BLOCK]
            s.counters[TOP_BLOCK] = block + 1
        else:
            s.counters[FREE_BLOCK] = s.blocks[block]
        s.blocks[block] = NONE
        position = block << SHIFT
        if row[LENGTH]:
            s.blocks[row[LAST] >> SHIFT] = block
        else:
            row[FIRST] = row[WINDOW] = position
        row[LAST] = position
    row[LENGTH] += 1
    return row[LAST]


@compiled
def free_positions(s: Store, sequence: int) -> None:
    """Give all blocks of `sequence` back and make it empty."""
    row = s.sequences[sequence]
    if row[LENGTH]:
        s.blocks[row[LAST] >> SHIFT] = s.counters[FREE_BLOCK]
        s.counters[FREE_BLOCK] = row[FIRST] >> SHIFT
    row[LENGTH] = 0


@compiled
def link_end(s: Store, node: int, position: int) -> None:
    """The suffix starting at `position` now ends at `node`."""
    first = s.nodes[node, ENDS]
    cell = s.cells[position]
    cell[CELL_NODE], cell[CELL_AFTER], cell[CELL_BEFORE] = node, first, NONE
    if first != NONE:
        s.cells[first, CELL_BEFORE] = position
    s.nodes[node, ENDS] = position


@compiled
def unlink_end(s: Store, position: int) -> None:
    """The suffix starting at `position` no longer ends at its node."""
    cell = s.cells[position]
    if cell[CELL_BEFORE] == NONE:
        s.nodes[cell[CELL_NODE], ENDS] = cell[CELL_AFTER]
    else:
        s.cells[cell[CELL_BEFORE], CELL_AFTER] = cell[CELL_AFTER]
    if cell[CELL_AFTER] != NONE:
        s.cells[cell[CELL_AFTER], CELL_BEFORE] = cell[CELL_BEFORE]


# --- the child table -----------------------------------------------------------------------------------------------


@compiled
def bucket_of(s: Store, parent: int, token: int) -> int:
    """Linear hashing: with b buckets, use one bit fewer for those that do not exist yet."""
    h = (parent * 0x9E3779B1 + token * 0x85EBCA6B) * 0x27D4EB2F
    h ^= h >> 29
    bucket = h & s.counters[MASK]
    return bucket if bucket < s.counters[NUM_BUCKETS] else bucket & (s.counters[MASK] >> 1)


@compiled
def find_child(s: Store, parent: int, token: int) -> int:
    """The child of `parent` whose edge starts with `token`, or NONE."""
    node = s.buckets[bucket_of(s, parent, token)]
    while node != NONE and not (s.nodes[node, PARENT] == parent and s.nodes[node, TOKEN] == token):
        node = s.nodes[node, CHAIN]
    return node


@compiled
def table_add(s: Store, node: int) -> None:
    """Enter `node` under its PARENT and TOKEN."""
    if s.counters[NUM_NODES] > s.counters[NUM_BUCKETS]:
        _split_bucket(s)
    bucket = bucket_of(s, s.nodes[node, PARENT], s.nodes[node, TOKEN])
    s.nodes[node, CHAIN] = s.buckets[bucket]
    s.buckets[bucket] = node


@compiled
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


@compiled
def table_remove(s: Store, node: int) -> None:
    """Take `node` out of the table; its PARENT and TOKEN are still those it was entered under."""
    bucket = bucket_of(s, s.nodes[node, PARENT], s.nodes[node, TOKEN])
    before = s.buckets[bucket]
    if before == node:
        s.buckets[bucket] = s.nodes[node, CHAIN]
        return
    while s.nodes[before, CHAIN] != node:
        before = s.nodes[before, CHAIN]
    s.nodes[before, CHAIN] = s.nodes[node, CHAIN]
