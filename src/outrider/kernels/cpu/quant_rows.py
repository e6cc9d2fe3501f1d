"""Activations as 8-bit integers, for products with quantised weights.

Of every 32 consecutive numbers of a row, d = max |x| / 127 and x_q = x * (127 / max |x|), rounded to nearest, ties to
even; numbers below 1e-30 count as 0. A tile holds, block by block of 32 features,

    x_q    int8 [rows][32]
    d      fp32 [rows]
    sums   [groups][rows]: offset * sum of x_q as int32, or with minima d * (sum of x_q) as fp32

The rows are normalised first where the product has a norm. No row depends on another.

Example: 1.27 -0.5 0 ... has d = 0.01 and x_q = 127 -50 0 ...
"""

from typing import Any

from numba import types

from outrider.kernels.cpu.quant_layout import BLOCK, Layout
from outrider.kernels.cpu.rows import dot
from outrider.kernels.cpu.vector import (
    F32,
    I8,
    I32,
    I64,
    Emitter,
    Value,
    emitted,
    folded,
    inlined,
    lowered,
    splat,
    vector,
)

__all__ = ["quantise"]

STEPS = 127.0
LEAST = 1e-30
ROUND = 12582912.0
"""1.5 * 2 ** 23: adding it to a small number rounds to an integer."""


@inlined
def quantise(code: int, x: int, norm: int, eps: float, out: int, rows: int, F: int) -> None:
    """Quantise `rows` rows of x, or of their RMSNorm, into a tile at `out`."""
    for r in range(rows):
        factor = types.float32(1.0)
        if norm != 0:
            factor = types.float32(1.0 / (dot(x + r * F * 4, x + r * F * 4, F) / F + eps) ** 0.5)
        quantise_row(code, x + r * F * 4, norm, factor, out, r, rows, F // 32)


@emitted
def quantise_row(
    typing: Any, code: Any, x: Any, norm: Any, factor: Any, out: Any, r: Any, rows: Any, blocks: Any
) -> Any:
    """Quantise row `r` of a tile; with a norm, x * factor * norm."""

    def emit(
        emitter: Emitter, code: int, x: Value, norm: Value, factor: Value, out: Value, r: Value, rows: Value,
        blocks: Value,
    ) -> None:  # fmt: skip
        layout = Layout.of(code)
        with emitter.cases(emitter.is_set(norm), [0, 1]) as normed:
            for has_norm in normed:
                record = emitter.builder.mul(rows, I64(BLOCK + 4 + 4 * layout.groups))
                with emitter.loop(I64(0), blocks) as block:
                    place = emitter.at(x, block, 4 * BLOCK)
                    numbers = emitter.load(place, vector(F32, BLOCK))
                    if has_norm:
                        weight = emitter.load(emitter.at(norm, block, 4 * BLOCK), vector(F32, BLOCK))
                        scaled = emitter.builder.fmul(numbers, splat(emitter, factor, BLOCK))
                        numbers = emitter.builder.fmul(scaled, weight)
                    emit_block(emitter, layout, numbers, emitter.at(out, block, record), r, rows)

    return lowered(emit, types.void, code, x, norm, factor, out, r, rows, blocks)


def emit_block(emitter: Emitter, layout: Layout, numbers: Value, record: Value, r: Value, rows: Value) -> None:
    """Quantise 32 numbers into the record of their block."""
    b = emitter.builder
    negative = b.fsub(splat(emitter, F32(-0.0), BLOCK), numbers)
    sizes = b.select(b.fcmp_ordered(">", numbers, negative), numbers, negative)
    most = folded(emitter, sizes, lambda left, right: b.select(b.fcmp_ordered(">", left, right), left, right))
    is_zero = b.fcmp_ordered("<", most, F32(LEAST))
    step = b.select(is_zero, F32(0.0), b.fdiv(most, F32(STEPS)))
    inverse = b.select(is_zero, F32(0.0), b.fdiv(F32(STEPS), most))
    magic = splat(emitter, F32(ROUND), BLOCK)
    rounded = b.fsub(b.fadd(b.fmul(numbers, splat(emitter, inverse, BLOCK)), magic), magic)
    integers = b.fptosi(rounded, vector(I32, BLOCK))
    emitter.store(emitter.at(record, r, BLOCK), b.trunc(integers, vector(I8, BLOCK)))
    steps = emitter.at(record, rows, BLOCK)
    emitter.store(emitter.at(steps, r, 4), step)
    if not layout.has_sums:
        return
    for group in range(layout.groups):
        size = layout.group
        order = vector(I32, size)(list(range(group * size, (group + 1) * size)))
        total = folded(emitter, b.shuffle_vector(integers, integers, order), b.add)
        offset = layout.reach[1]
        kept = b.mul(total, I32(offset)) if offset else b.fmul(b.sitofp(total, F32), step)
        emitter.store(emitter.at(emitter.at(steps, rows, 4 * (1 + group)), r, 4), kept)
