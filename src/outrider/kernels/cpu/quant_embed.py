"""Rows of a packed quantised matrix as fp32, for embeddings: one column of a strip, read code by code.

Example: token 21 with 8 lanes is lane 5 of strip 2.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from outrider.kernels.cpu.quant_layout import NUMBER_BYTES, TABLES, Layout
from outrider.kernels.cpu.threads import ticket
from outrider.kernels.cpu.vector import F16, F32, I16, I32, I64, WIDTH, Emitter, Value, emitted, f32, i64, kernel, u8
from outrider.kernels.cpu.vector import lowered as lowered

__all__ = ["quant_embed"]

FLOATS, HALVES, SIGNED, UNSIGNED = range(4)


@emitted
def number_at(typing: Any, address: Any, kind: Any) -> Any:
    """Load one number of a kind as fp32."""

    def emit(emitter: Emitter, address: Value, kind: int) -> Value:
        b = emitter.builder
        if kind == FLOATS:
            return emitter.load(address, F32)
        if kind == HALVES:
            return b.fpext(emitter.load(address, F16), F32)
        byte = emitter.load(address, ir.IntType(8))
        return b.sitofp(b.sext(byte, I32) if kind == SIGNED else b.zext(byte, I32), F32)

    return lowered(emit, types.float32, address, kind)


@emitted
def table_number(typing: Any, table: Any, code: Any) -> Any:
    """Return the number of a table that a code stands for."""

    def emit(emitter: Emitter, table: int, code: Value) -> Value:
        b, kind = emitter.builder, ir.ArrayType(I16, 16)
        name = f"outrider_codes_{table}"
        found = b.module.globals.get(name) or cgutils.global_constant(b.module, name, kind(list(TABLES[table])))
        place = emitter.at(b.ptrtoint(found, I64), code, 2)
        return b.sext(emitter.load(place, I16), I64)

    return lowered(emit, types.int64, table, code)


@cache
def quant_embed(layout: Layout) -> Any:
    """Return the kernel that runs `CpuOps.embed` for this layout."""
    bits, offset, group, groups = layout.bits, layout.offset, layout.group, layout.groups
    table = -1 if layout.table is None else layout.table
    is_super, has_minima = layout.scales == "super", layout.has_minima
    kind = {"f16": HALVES, "f32": FLOATS, "super": SIGNED}[layout.scales]
    least_kind = UNSIGNED if is_super else kind
    size, code_bytes = NUMBER_BYTES[layout.scales], layout.code_bytes(WIDTH)
    block_bytes, super_bytes = layout.block_bytes(WIDTH), layout.super_bytes(WIDTH)
    word, extra = 4 * WIDTH, bits - 4 if bits < 8 else 0
    per_plane = 8 // extra if extra else 1

    @kernel
    def quantised_embed(block: int, lane: int) -> None:
        a = i64(block)
        weight, F, tokens, out, R = a[0], a[2], i64(a[3]), a[4], a[5]
        blocks = F // 32
        strip = blocks * block_bytes + blocks // 8 * super_bytes
        r = ticket(block, 0)
        while r < R:
            column = tokens[r] % WIDTH
            base, target = weight + tokens[r] // WIDTH * strip, f32(out + r * F * 4)
            for n in range(blocks):
                start = base + n * block_bytes + (n // 8 + 1) * super_bytes
                codes, numbers = u8(start), start + code_bytes
                for g in range(groups):
                    place = numbers + (g * WIDTH + column) * size
                    scale, least = number_at(place, kind), types.float32(0.0)
                    if has_minima:
                        least = number_at(place + groups * WIDTH * size, least_kind)
                    if is_super:
                        factors = base + n // 8 * (8 * block_bytes + super_bytes) + 2 * column
                        scale = scale * number_at(factors, HALVES)
                        if has_minima:
                            least = least * number_at(factors + 2 * WIDTH, HALVES)
                    for f in range(g * group, (g + 1) * group):
                        four = f // 4
                        place = 4 * column + f % 4
                        code = types.int64(codes[four * word + place] if bits == 8 else codes[four % 4 * word + place])
                        if bits < 8:
                            code = code >> 4 if four >= 4 else code & 15
                        if extra:
                            plane = types.int64(codes[(4 + four // per_plane) * word + place])
                            code |= (plane >> (four % per_plane * extra) & ((1 << extra) - 1)) << 4
                        number = table_number(table, code) if table >= 0 else code - offset
                        value = types.float32(number) * scale
                        target[n * 32 + f] = value + least if has_minima else value  # adding 0 loses the sign of 0
            r = ticket(block, 0)

    return quantised_embed
