"""The matrix product with quantised weights: as `linear.py`, with activations rounded to 8 bits.

Every row is normalised if needed and quantised (`quant_rows.py`), then each strip of columns is multiplied with tiles
of up to `HEIGHT` rows (`quant_tile.py`), and a block of two strips is finished as in `linear.py`.

A kernel is compiled for each layout of weights when a model first uses it.
"""

from functools import cache
from typing import Any

from outrider.kernels.cpu.isa import ISAS
from outrider.kernels.cpu.quant_layout import BLOCK, Layout
from outrider.kernels.cpu.quant_rows import quantise
from outrider.kernels.cpu.quant_tile import HEIGHT, quant_tile, record_bytes
from outrider.kernels.cpu.rows import COLUMNS, GATED, finish, tile_start
from outrider.kernels.cpu.threads import draw, finished, stack, ticket, wait_for
from outrider.kernels.cpu.vector import WIDTH, f64, i64, inlined, kernel

__all__ = ["HEIGHT", "quant_linear", "row_bytes"]

SUMS_BYTES = 4 * COLUMNS * HEIGHT


def row_bytes(layout: Layout, F: int) -> int:
    """Return the bytes of a quantised row of activations."""
    return F // BLOCK * record_bytes(1, layout.groups)


@inlined
def tiles_of(rows: int) -> int:
    return (rows + HEIGHT - 1) // HEIGHT


@cache
def quant_linear(layout: Layout, isa: str) -> Any:
    """Return the kernel for this layout of weights."""
    code, which = layout.code, ISAS.index(isa)
    strip_block, first_bytes = layout.block_bytes(WIDTH), layout.super_bytes(WIDTH)
    per_row = record_bytes(1, layout.groups)

    @kernel
    def quantised_linear(block: int, lane: int) -> None:
        a = i64(block)
        x, norm, eps, scratch = a[0], a[1], f64(block)[2], a[3]
        weight, bias, F, outputs = a[4], a[6], a[7], a[8]
        out, R, mode = a[9], a[10], a[11]
        num_blocks, chunk, panel_rows, columns = a[12], a[13], a[14], a[15]
        width = WIDTH if mode >= GATED else COLUMNS
        blocks = F // BLOCK
        strip = blocks * strip_block + blocks // 8 * first_bytes
        row = blocks * per_row
        num_chunks = (num_blocks + chunk - 1) // chunk
        num_tiles = tiles_of(R)
        first = draw(block, lane, 2, num_chunks) * chunk
        if num_tiles == 1:  # cheaper than sharing them between cores
            if first >= num_blocks:
                return
            scratch += lane * R * row
            quantise(code, x, norm, eps, scratch, R, F)
        else:
            t = ticket(block, 0)
            while t < num_tiles:
                start = tile_start(t, num_tiles, R)
                height = tile_start(t + 1, num_tiles, R) - start
                quantise(code, x + start * F * 4, norm, eps, scratch + start * row, height, F)
                finished(block, 1)
                t = ticket(block, 0)
            wait_for(block, 1, num_tiles)
        sums = stack(SUMS_BYTES)
        per_panel = panel_rows // HEIGHT
        while first < num_blocks:
            following = draw(block, lane, 2, num_chunks) * chunk
            last = min(first + chunk, num_blocks)
            for p in range(0, num_tiles, per_panel):
                for b in range(first, last):
                    place = weight + b * 2 * strip
                    for t in range(p, min(p + per_panel, num_tiles)):
                        start = tile_start(t, num_tiles, R)
                        height = tile_start(t + 1, num_tiles, R) - start
                        tile = scratch + start * row
                        for part in range(2):
                            quant_tile(
                                code, which, WIDTH, height, tile, place + part * strip, blocks, sums + part * WIDTH * 4,
                                COLUMNS,
                            )  # fmt: skip
                        target = out + start * outputs * 4
                        finish(sums, height, b * width, columns, mode, bias, target, outputs, place)
            first = following

    return quantised_linear
