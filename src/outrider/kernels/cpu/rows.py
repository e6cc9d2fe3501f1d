"""The work on rows before and after a product of the CPU back end: normalising, laying out, finishing.

Rows are laid out tile by tile, [feature][row of the tile], so that a product's inner loop reads both its streams at
fixed offsets from two pointers; this made eight rows a third faster than striding from row to row. Vectors of rows are
interleaved in registers: the rows (a b c d) and (e f g h) are stored as (a e b f), (c g d h).

A block's sums are finished in the order gate, bias, and are assigned or added to the output, a vector of columns
at a time. No row depends on another here either.

Both are short beside the product, but memory would be idle meanwhile, so each finished row prefetches a few lines of
weights.
"""

import math
from typing import Any

from llvmlite import ir
from numba import types

from outrider.kernels.cpu.threads import stack
from outrider.kernels.cpu.vector import (
    F32,
    I32,
    I64,
    SUMS,
    TILE_ROWS,
    WIDE,
    WIDTH,
    Emitter,
    Value,
    emitted,
    f32,
    folded,
    inlined,
    interleaved,
    lowered,
    splat,
    vector,
)

__all__ = ["ADD", "ASSIGN", "COLUMNS", "GATED", "GATED_GELU", "LEVEL", "dot", "finish", "lay_out", "tile_start"]

ASSIGN, ADD, GATED, GATED_GELU = MODES = (0, 1, 2, 3)  # what is done with a product; from GATED on, of a gated MLP
COLUMNS = 2 * WIDTH
LEVEL = 1 if WIDE else 2
"""Cache level to prefetch into: the first for what is read soon (5 % faster with AVX-512); whole blocks do not fit."""
FETCHED = 256
"""Bytes of weights that each finished row prefetches: what memory delivers in that time."""
SCALE_BYTES = 4 * TILE_ROWS
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


@inlined
def tile_start(t: int, num_tiles: int, rows: int) -> int:
    """Return the first row of tile `t`; tiles are of nearly equal height, the higher ones first."""
    return t * (rows // num_tiles) + min(t, rows % num_tiles)


@emitted
def dot(typing: Any, a: Any, b: Any, count: Any) -> Any:
    """Return the sum of a[i] * b[i] for fp32 arrays: four vectors of sums, then single vectors, then single numbers."""

    def emit(emitter: Emitter, a: Value, b: Value, count: Value) -> Value:
        sums = [emitter.variable(splat(emitter, F32(0.0), SUMS)) for _ in range(4)]
        rest = emitter.variable(F32(0.0))

        def add(index: Value, lanes: int, total: Value) -> None:
            left, right = (emitter.load(emitter.at(base, index, 4), vector(F32, lanes)) for base in (a, b))
            emitter.set(total, emitter.fma(left, right, emitter.get(total)))

        long, short = emitter.whole(count, 4 * SUMS), emitter.whole(count, SUMS)
        with emitter.loop(I64(0), long, 4 * SUMS) as index:
            for part, total in enumerate(sums):
                add(emitter.builder.add(index, I64(part * SUMS)), SUMS, total)
        with emitter.loop(long, short, SUMS) as index:
            add(index, SUMS, sums[0])
        with emitter.loop(short, count) as index:
            add(index, 1, rest)
        plus = emitter.builder.fadd
        first, second, third, fourth = (emitter.get(total) for total in sums)
        return plus(folded(emitter, plus(plus(first, second), plus(third, fourth)), plus), emitter.get(rest))

    return lowered(emit, types.float32, a, b, count)


@inlined
def lay_out(x: int, norm: int, eps: float, out: int, rows: int, F: int) -> None:
    """Compute out[f, r] = x[r, f], or x / sqrt(mean(x^2) + eps) * norm, for up to `TILE_ROWS` rows of one tile."""
    scales = stack(SCALE_BYTES)
    if norm != 0:
        factors = f32(scales)
        for r in range(rows):
            factors[r] = types.float32(1.0 / (dot(x + r * F * 4, x + r * F * 4, F) / F + eps) ** 0.5)
    interleave(x, rows, norm, scales, out, F)


@emitted
def interleave(typing: Any, x: Any, rows: Any, norm: Any, scales: Any, out: Any, features: Any) -> Any:
    """Compute out[f, r] = x[r, f] * scales[r] * norm[f], or x[r, f] where `norm` is 0."""

    def emit(emitter: Emitter, x: Value, rows: Value, norm: Value, scales: Value, out: Value, F: Value) -> None:
        rows = I64(rows) if isinstance(rows, int) else rows
        number = emitter.builder.add(emitter.builder.mul(rows, I64(2)), emitter.is_set(norm))
        cases = [(height, normed) for height in range(1, TILE_ROWS + 1) for normed in (False, True)]
        with emitter.cases(number, [2 * height + normed for height, normed in cases]) as blocks:
            for (height, normed), _ in zip(cases, blocks, strict=True):
                emit_interleave(emitter, height, normed, x, norm, scales, out, F)

    return lowered(emit, types.void, x, rows, norm, scales, out, features)


def emit_interleave(
    emitter: Emitter, rows: int, normed: bool, x: Value, norm: Value, scales: Value, out: Value, F: Value
) -> None:
    b = emitter.builder
    pitch = 1 << (rows - 1).bit_length()  # rows of the stored registers; surplus rows are overwritten
    whole = emitter.whole(F if pitch == rows else b.sub(F, I64(1)), WIDTH)
    factors = [emitter.load(emitter.at(scales, r, 4), F32) for r in range(rows)] if normed else []

    def scaled(r: int, index: Value, lanes: int) -> Value:
        number = emitter.load(emitter.at(emitter.at(x, b.mul(F, I64(r)), 4), index, 4), vector(F32, lanes))
        if not normed:
            return number
        weight = emitter.load(emitter.at(norm, index, 4), vector(F32, lanes))
        return b.fmul(b.fmul(number, splat(emitter, factors[r], lanes)), weight)

    with emitter.loop(I64(0), whole, WIDTH) as index:
        vectors = [scaled(r, index, WIDTH) for r in range(rows)]
        vectors += [ir.VectorType(F32, WIDTH)(ir.Undefined)] * (pitch - rows)
        target = emitter.at(out, index, 4 * rows)
        for number, mixed in enumerate(interleaved(emitter, vectors)):
            if pitch == rows:
                emitter.store(emitter.at(target, number * WIDTH, 4), mixed)
                continue
            for feature in range(WIDTH // pitch):
                lanes = ir.VectorType(I32, pitch)(list(range(feature * pitch, (feature + 1) * pitch)))
                place = (number * WIDTH // pitch + feature) * rows
                emitter.store(emitter.at(target, place, 4), b.shuffle_vector(mixed, mixed, lanes))
    with emitter.loop(whole, F) as index:
        for r in range(rows):
            emitter.store(emitter.at(emitter.at(out, index, 4 * rows), r, 4), scaled(r, index, 1))


@inlined
def finish(
    sums: int, rows: int, first: int, last: int, mode: int, bias: int, out: int, outputs: int, following: int
) -> None:
    """Write one block's sums to the columns from `first` to before `last` of `rows` rows of `out`, `outputs` apart.

    The weights from `following` on are prefetched meanwhile.
    """
    width = WIDTH if mode >= GATED else COLUMNS
    columns = min(width, last - first)
    place = out + first * 4
    bias_here = bias + first * 4 if bias != 0 else 0
    if columns == width:
        finish_rows(sums, rows, mode, bias_here, place, outputs * 4, following)
    else:  # the last block has padding columns
        finish_rows(sums, rows, mode if mode >= GATED else ASSIGN, bias_here, sums, COLUMNS * 4, following)
        for r in range(rows):
            y, row = f32(sums + r * COLUMNS * 4), f32(place + r * outputs * 4)
            for c in range(columns):
                row[c] = row[c] + y[c] if mode == ADD else y[c]


@emitted
def finish_rows(typing: Any, sums: Any, rows: Any, mode: Any, bias: Any, out: Any, stride: Any, following: Any) -> Any:
    """Finish whole blocks; rows of `out` are `stride` bytes apart."""

    def emit(
        emitter: Emitter,
        sums: Value,
        rows: Value,
        mode: Value,
        bias: Value,
        out: Value,
        stride: Value,
        following: Value,
    ) -> None:
        b = emitter.builder
        cases = [(which, biased) for which in MODES for biased in (0, 1)]
        number = b.add(b.mul(mode, I64(2)), emitter.is_set(bias))
        with emitter.cases(number, [2 * which + biased for which, biased in cases]) as blocks:
            for (which, biased), _ in zip(cases, blocks, strict=True):
                with emitter.loop(I64(0), rows) as r:
                    source, target = emitter.at(sums, r, COLUMNS * 4), emitter.at(out, r, stride)
                    for line in range(0, FETCHED, 64):
                        emitter.prefetch(emitter.at(emitter.at(following, r, FETCHED), line, 1), LEVEL)
                    emit_finish(emitter, which, bias if biased else None, source, target)

    return lowered(emit, types.void, sums, rows, mode, bias, out, stride, following)


def gelu_argument(emitter: Emitter, x: Value) -> Value:
    """Return u with x * sigmoid(u) = GELU(x) in its tanh form: 2 * sqrt(2 / pi) * (x + 0.044715 * x^3)."""
    b = emitter.builder
    slope, cubic = (splat(emitter, F32(number), WIDTH) for number in (GELU_SLOPE, GELU_SLOPE * 0.044715))
    return b.fmul(x, b.fadd(slope, b.fmul(cubic, b.fmul(x, x))))


def emit_finish(emitter: Emitter, mode: int, bias: Value | None, source: Value, target: Value) -> None:
    b = emitter.builder
    totals = list(emitter.load_pair(source, 0))
    if mode >= GATED:
        low, high = totals
        one = splat(emitter, F32(1.0), WIDTH)
        inner = low if mode == GATED else gelu_argument(emitter, low)
        sigmoid = b.fdiv(one, b.fadd(one, emitter.exp(b.fsub(splat(emitter, F32(-0.0), WIDTH), inner))))
        totals = [b.fmul(b.fmul(low, sigmoid), high)]
    for part, total in enumerate(totals):
        if bias is not None:
            total = b.fadd(total, emitter.load(emitter.at(bias, part * WIDTH, 4), vector(F32, WIDTH)))
        place = emitter.at(target, part * WIDTH, 4)
        if mode == ADD:
            total = b.fadd(emitter.load(place, vector(F32, WIDTH)), total)
        emitter.store(place, total)
