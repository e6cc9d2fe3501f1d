"""The products of rows with the quantised weights of their experts: as `linear.py`, with rows rounded to 8 bits.

A kernel is compiled for each layout of weights when a model first uses it.
"""

from functools import cache
from typing import Any

from outrider.kernels.cpu.isa import ISAS
from outrider.kernels.cpu.quant_layout import BLOCK, Layout
from outrider.kernels.cpu.quant_linear import SUMS_BYTES, tiles_of
from outrider.kernels.cpu.quant_rows import quantise
from outrider.kernels.cpu.quant_tile import quant_tile, record_bytes
from outrider.kernels.cpu.rows import COLUMNS, GATED, finish, tile_start
from outrider.kernels.cpu.threads import stack, ticket
from outrider.kernels.cpu.vector import WIDTH, i32, i64, kernel

__all__ = ["quant_expert_linear"]


@cache
def quant_expert_linear(layout: Layout, isa: str) -> Any:
    """Return the kernel for this layout of weights."""
    code, which = layout.code, ISAS.index(isa)
    strip_block, first_bytes = layout.block_bytes(WIDTH), layout.super_bytes(WIDTH)
    per_row = record_bytes(1, layout.groups)

    @kernel
    def quantised_expert_linear(block: int, lane: int) -> None:
        a = i64(block)
        x, scratch, weights, F, outputs, out, mode = a[0], a[1], i64(a[2]), a[4], a[5], a[6], a[7]
        num_blocks, chunk, panel_rows = a[8], a[9], a[10]
        num_groups, expert, start, nothing = i32(a[11])[0], i32(a[12]), i32(a[13]), a[14]
        width = WIDTH if mode >= GATED else COLUMNS
        blocks = F // BLOCK
        strip = blocks * strip_block + blocks // 8 * first_bytes
        row = blocks * per_row
        num_chunks = (num_blocks + chunk - 1) // chunk
        own = scratch + lane * panel_rows * row
        sums = stack(SUMS_BYTES)
        laid_out = -1
        task = ticket(block, 0)
        while task < num_groups * num_chunks:
            g, first = task // num_chunks, task % num_chunks * chunk
            last = min(first + chunk, num_blocks)
            weight = weights[expert[g]]
            for r in range(start[g], start[g + 1], panel_rows):
                rows = min(panel_rows, start[g + 1] - r)
                num_tiles = tiles_of(rows)
                if laid_out != r:
                    for t in range(num_tiles):
                        low, high = tile_start(t, num_tiles, rows), tile_start(t + 1, num_tiles, rows)
                        quantise(code, x + (r + low) * F * 4, nothing, 0.0, own + low * row, high - low, F)
                    laid_out = r
                for b in range(first, last):
                    place = weight + b * 2 * strip
                    for t in range(num_tiles):
                        low, high = tile_start(t, num_tiles, rows), tile_start(t + 1, num_tiles, rows)
                        for part in range(2):
                            quant_tile(
                                code, which, WIDTH, high - low, own + low * row, place + part * strip, blocks,
                                sums + part * WIDTH * 4, COLUMNS,
                            )  # fmt: skip
                        target = out + (r + low) * outputs * 4
                        finish(sums, high - low, b * width, outputs, mode, nothing, target, outputs, place)
            task = ticket(block, 0)

    return quantised_expert_linear
