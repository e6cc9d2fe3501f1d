"""The inner loop of products with quantised weights: a few rows by one strip of columns.

For the blocks b of 32 features in ascending order, and within a block for the groups g of its scales,

    sum    = sum over the group of (code - offset) * x_q                 exact, in 32 bits
    y      = fma(sum * scale[g], d_x[b], y)
    y      = fma(minimum[g], d_x[b] * sum over the group of x_q, y)      with minima

in fp32, where a row's activations are x = d_x[b] * x_q with x_q from -127 to 127 (`quant_rows.py`). So a row's bits
depend on that row alone, and neither on the number of rows nor on the instruction set.

Example: Q4_0 with d = 0.5, code 10 and an activation of 2.0 in a block whose largest is 2.54: x_q = 100, d_x = 0.02,
the term is fma((10 - 8) * 100 * 0.5, 0.02, y) = y + 2.0.
"""

from collections.abc import Iterator
from typing import Any

from numba import types

from outrider.kernels.cpu.isa import ISAS, chosen
from outrider.kernels.cpu.quant_dots import dots, looked_up
from outrider.kernels.cpu.quant_layout import BLOCK, PER_SUPER, TABLES, Layout
from outrider.kernels.cpu.quant_tiles import MATRIX_ROWS, Tiles
from outrider.kernels.cpu.vector import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    WIDE,
    Emitter,
    Value,
    emitted,
    lowered,
    splat,
    vector,
)

__all__ = ["HEIGHT", "Strip", "quant_tile", "record_bytes"]

REGISTER_ROWS = 8 if WIDE else 6
"""The most rows whose sums, and those of pairs, fit the registers."""
HEIGHT = MATRIX_ROWS if chosen() == "amx" else REGISTER_ROWS
"""The most rows of a tile."""
AHEAD = 4096
"""Bytes of weights that are prefetched ahead."""


def record_bytes(rows: int, groups: int) -> int:
    """Return the bytes of a block of a tile's activations: x_q [rows][32], d_x [rows], sums [groups][rows]."""
    return rows * (BLOCK + 4 + 4 * groups)


@emitted
def quant_tile(
    typing: Any, code: Any, isa: Any, lanes: Any, rows: Any, x: Any, weight: Any, blocks: Any, out: Any, line: Any
) -> Any:
    """Compute out[row, lane] for one strip; rows of `out` are `line` numbers apart."""

    def emit(
        emitter: Emitter, code: int, isa: int, lanes: int, rows: Value, x: Value, weight: Value, blocks: Value,
        out: Value, line: int,
    ) -> None:  # fmt: skip
        with emitter.cases(rows, list(range(1, HEIGHT + 1))) as heights:
            for height in heights:
                strip = Strip(emitter, Layout.of(code), ISAS[isa], lanes, height)
                for row, total in enumerate(strip.product(x, weight, blocks)):
                    emitter.store(emitter.at(out, row * line, 4), total)

    return lowered(emit, types.void, code, isa, lanes, rows, x, weight, blocks, out, line)


class Strip:
    """Emits one strip's product for a fixed number of rows."""

    def __init__(self, emitter: Emitter, layout: Layout, isa: str, lanes: int, rows: int) -> None:
        self.emitter, self.layout, self.isa, self.lanes, self.rows = emitter, layout, isa, lanes, rows
        self.record = record_bytes(rows, layout.groups)
        self.tiles = Tiles(emitter, rows, layout.group) if isa == "amx" and rows > REGISTER_ROWS else None
        self.sums = [emitter.variable(splat(emitter, F32(0.0), lanes)) for _ in range(rows)]

    def product(self, x: Value, weight: Value, blocks: Value) -> list[Value]:
        """Emit the loops over blocks; return the sums of each row."""
        emitter, layout = self.emitter, self.layout
        if self.tiles is not None:
            self.tiles.open()
        block_bytes = layout.block_bytes(self.lanes)
        if layout.scales != "super":
            with emitter.loop(I64(0), blocks) as block:
                self.add_block(emitter.at(x, block, self.record), emitter.at(weight, block, block_bytes), None, None)
        else:
            supers = emitter.builder.lshr(blocks, I64(3))
            first = layout.super_bytes(self.lanes)
            with emitter.loop(I64(0), supers) as number:
                here = emitter.at(weight, number, first + PER_SUPER * block_bytes)
                scale = self.halves(here)
                minimum = self.halves(emitter.at(here, 2 * self.lanes, 1)) if layout.has_minima else None
                above = emitter.at(x, number, PER_SUPER * self.record)
                with emitter.loop(I64(0), I64(PER_SUPER)) as block:
                    place = emitter.at(emitter.at(here, first, 1), block, block_bytes)
                    self.add_block(emitter.at(above, block, self.record), place, scale, minimum)
        if self.tiles is not None:
            self.tiles.close()
        return [emitter.get(total) for total in self.sums]

    def add_block(self, x: Value, weight: Value, scale: Value | None, minimum: Value | None) -> None:
        """Emit one block of 32 features; with super-scales, their factors are given."""
        emitter, layout = self.emitter, self.layout
        b, (bits, offset) = emitter.builder, layout.reach
        for ahead in range(0, layout.block_bytes(self.lanes), 64):
            emitter.prefetch(emitter.at(weight, AHEAD + ahead, 1), 1)
        codes = list(self.codes(weight))
        here = emitter.at(weight, layout.code_bytes(self.lanes), 1)
        per_group = len(codes) // layout.groups
        for group in range(layout.groups):

            def four(row: int, number: int, first: int = group * per_group) -> Value:
                place = emitter.at(x, BLOCK * row + 4 * (first + number), 1)
                return b.bitcast(splat(emitter, emitter.load(place, I32), self.lanes), vector(I8, 4 * self.lanes))

            some = codes[group * per_group : (group + 1) * per_group]
            if self.tiles is None:
                totals = dots(emitter, self.isa, self.lanes, bits, some, self.rows, four)
            else:
                totals = self.tiles.dots(some, emitter.at(x, group * layout.group, 1), BLOCK)
            factor, least = self.scales(here, group, scale, minimum)
            for row, total in enumerate(totals):
                place = emitter.at(x, (BLOCK + 4 * (1 + group)) * self.rows + 4 * row, 1)
                if offset:
                    total = b.sub(total, splat(emitter, emitter.load(place, I32), self.lanes))
                scaled = b.fmul(b.sitofp(total, vector(F32, self.lanes)), factor)
                step = emitter.load(emitter.at(x, BLOCK * self.rows + 4 * row, 1), F32)
                result = emitter.fma(scaled, splat(emitter, step, self.lanes), emitter.get(self.sums[row]))
                if least is not None:
                    result = emitter.fma(least, splat(emitter, emitter.load(place, F32), self.lanes), result)
                emitter.set(self.sums[row], result)

    def codes(self, weight: Value) -> Iterator[Value]:
        """Yield the vectors of unsigned codes of the eight groups of four features."""
        emitter, b, kind = self.emitter, self.emitter.builder, vector(I8, 4 * self.lanes)
        size = 4 * self.lanes
        if self.layout.bits == 8:
            yield from (emitter.load(emitter.at(weight, group * size, 1), kind) for group in range(8))
            return
        nibbles = [emitter.load(emitter.at(weight, part * size, 1), kind) for part in range(4)]
        extra = self.layout.bits - 4
        planes = [emitter.load(emitter.at(weight, (4 + part) * size, 1), kind) for part in range(extra)]
        for group in range(8):
            code = self.shifted(nibbles[group % 4], 4 if group >= 4 else 0, 15)
            if extra:
                per_plane = 8 // extra
                plane, place = planes[group // per_plane], group % per_plane * extra
                code = b.or_(code, self.shifted(plane, place - 4, ((1 << extra) - 1) << 4))
            if self.layout.table is not None:
                offset = self.layout.reach[1]
                numbers = [number + offset for number in TABLES[self.layout.table]]
                code = looked_up(emitter, self.isa, self.lanes, numbers, code)
            yield code

    def shifted(self, some: Value, right: int, mask: int) -> Value:
        """Shift every byte right (left if negative) and mask it."""
        emitter, b = self.emitter, self.emitter.builder
        if right:
            words = b.bitcast(some, vector(I16, 2 * self.lanes))
            by = splat(emitter, I16(abs(right)), 2 * self.lanes)
            some = b.bitcast(b.lshr(words, by) if right > 0 else b.shl(words, by), some.type)
        return b.and_(some, splat(emitter, I8(mask), 4 * self.lanes))

    def scales(self, here: Value, group: int, scale: Value | None, minimum: Value | None) -> tuple[Value, Value | None]:
        """Return the scale and the minimum of each lane in fp32."""
        emitter, layout, b, lanes = self.emitter, self.layout, self.emitter.builder, self.lanes
        size = layout.scale_bytes(lanes) // (layout.groups * (1 + layout.has_minima))
        place, other = (emitter.at(here, (layout.groups * part + group) * size, 1) for part in (0, 1))
        if scale is not None:
            small = vector(I8, lanes)
            factor = b.fmul(scale, b.sitofp(b.sext(emitter.load(place, small), vector(I32, lanes)), scale.type))
            if minimum is None:
                return factor, None
            number = b.sitofp(b.zext(emitter.load(other, small), vector(I32, lanes)), scale.type)
            return factor, b.fmul(minimum, number)
        read = self.halves if layout.scales == "f16" else self.floats
        return read(place), read(other) if layout.has_minima else None

    def halves(self, address: Value) -> Value:
        """Load fp16 numbers as fp32."""
        return self.emitter.builder.fpext(self.emitter.load(address, vector(F16, self.lanes)), vector(F32, self.lanes))

    def floats(self, address: Value) -> Value:
        return self.emitter.load(address, vector(F32, self.lanes))
