"""The products of rows with the plain weights of their experts, in one parallel region.

A task is some blocks of columns of one expert, for all rows that chose it; it reads its weights once. Tasks are drawn
in the order of the experts. The rows of a task are laid out by the thread that computes it, and kept for its next one.
Sums are those of `kernels/cpu/linear.py`: their bits do not depend on the other rows of the expert.

Example: one row with 8 experts of 48 blocks each, of which a task takes 24, has 16 tasks.
"""

from outrider.kernels.cpu.linear import TILE_BYTES, num_tiles_of, panel, prepare, size_of
from outrider.kernels.cpu.rows import COLUMNS, GATED, tile_start
from outrider.kernels.cpu.threads import stack, ticket
from outrider.kernels.cpu.vector import WIDTH, i32, i64, inlined, kernel

__all__ = ["expert_linear"]


@inlined
def lay_out_panel(kind: int, x: int, norm: int, out: int, rows: int, F: int) -> None:
    """Lay out rows by tiles."""
    num_tiles = num_tiles_of(rows)
    for t in range(num_tiles):
        first = tile_start(t, num_tiles, rows)
        height = tile_start(t + 1, num_tiles, rows) - first
        prepare(kind, x + first * F * 4, norm, 0.0, out + first * F * 4, height, F)


@kernel
def expert_linear(block: int, lane: int) -> None:
    """Compute out[p] = x[p] @ weight of the expert of pair p, as `mode` says."""
    a = i64(block)
    x, scratch, weights, kind, F, outputs, out, mode = a[0], a[1], i64(a[2]), a[3], a[4], a[5], a[6], a[7]
    num_blocks, chunk, panel_rows = a[8], a[9], a[10]
    num_groups, expert, start, nothing = i32(a[11])[0], i32(a[12]), i32(a[13]), a[14]
    width = WIDTH if mode >= GATED else COLUMNS
    block_bytes = F * COLUMNS * size_of(kind)
    num_chunks = (num_blocks + chunk - 1) // chunk
    own = scratch + lane * panel_rows * F * 4
    sums = stack(TILE_BYTES)
    laid_out = -1
    task = ticket(block, 0)
    while task < num_groups * num_chunks:
        g, first = task // num_chunks, task % num_chunks * chunk
        last = min(first + chunk, num_blocks)
        weight = weights[expert[g]]
        task = ticket(block, 0)
        following = weight + first * block_bytes
        if task < num_groups * num_chunks:
            following = weights[expert[task // num_chunks]] + task % num_chunks * chunk * block_bytes
        for r in range(start[g], start[g + 1], panel_rows):
            rows = min(panel_rows, start[g + 1] - r)
            if laid_out != r:
                lay_out_panel(kind, x + r * F * 4, nothing, own, rows, F)
                laid_out = r
            for b in range(first, last):
                place = weight + b * block_bytes
                ahead = block_bytes if b + 1 < last else following - place
                target = out + r * outputs * 4
                panel(own, place, ahead, kind, F, rows, b * width, mode, nothing, target, outputs, outputs, sums)
