"""The matrix product of the CPU back end: RMSNorm before it, bias, residual or gate after it, in one parallel region.

Weights are packed in blocks of two vectors of output columns, [block][feature][2 * WIDTH], so that a tile of up to
`TILE_ROWS` rows by one block reads its weights as one stream and keeps all sums in registers. In bf16 the two vectors
are interleaved, low halves and high halves of 32-bit lanes: one load, one shift and one mask widen both.

Every sum y[r, o] = fma(x[r, F-1], w[o, F-1], ... fma(x[r, 0], w[o, 0], 0)) runs over the features in ascending order in
one register lane, whichever tile it is in. The bits of a row hence depend on that row alone: not on the number of rows,
the row's index, the tile's shape or the number of threads.

Worked example: 8 rows are two tiles of 4; the block of weights (18 KB for 576 features in bf16) comes from memory for
the first tile and from the first-level cache for the second.
"""

from typing import Any

from numba import types

from outrider.models.cpu_threads import finished, stack, ticket, wait_for
from outrider.models.cpu_vector import (
    F32,
    I64,
    TILE_ROWS,
    WIDTH,
    Emitter,
    Value,
    emitted,
    f32,
    f64,
    i64,
    inlined,
    kernel,
    lane_sum,
    lowered,
    splat,
    vector,
)

__all__ = ["ADD", "ASSIGN", "GATED", "NORM_ROWS", "dot", "linear"]

ASSIGN, ADD, GATED = 0, 1, 2  # what becomes of a product
NORM_ROWS = 8  # rows per ticket of the norm stage
UNROLL = 4
COLUMNS = 2 * WIDTH
TILE_BYTES = 4 * COLUMNS * TILE_ROWS


@emitted
def dot(typing: Any, a: Any, b: Any, count: Any) -> Any:
    """Sum of a[i] * b[i] for fp32 arrays: four vectors of sums, then single vectors, then single numbers."""

    def emit(emitter: Emitter, a: Value, b: Value, count: Value) -> Value:
        sums = [emitter.variable(splat(emitter, F32(0.0), WIDTH)) for _ in range(4)]
        rest = emitter.variable(F32(0.0))

        def add(index: Value, lanes: int, total: Value) -> None:
            left, right = (emitter.load(emitter.at(base, index, 4), vector(F32, lanes)) for base in (a, b))
            emitter.set(total, emitter.fma(left, right, emitter.get(total)))

        long, short = emitter.whole(count, 4 * WIDTH), emitter.whole(count, WIDTH)
        with emitter.loop(I64(0), long, 4 * WIDTH) as index:
            for part, total in enumerate(sums):
                add(emitter.builder.add(index, I64(part * WIDTH)), WIDTH, total)
        with emitter.loop(long, short, WIDTH) as index:
            add(index, WIDTH, sums[0])
        with emitter.loop(short, count) as index:
            add(index, 1, rest)
        plus = emitter.builder.fadd
        first, second, third, fourth = (emitter.get(total) for total in sums)
        return plus(lane_sum(emitter, plus(plus(first, second), plus(third, fourth))), emitter.get(rest))

    return lowered(emit, types.float32, a, b, count)


@emitted
def tile(
    typing: Any, rows: Any, half: Any, x: Any, stride: Any, weight: Any, ahead: Any, features: Any, out: Any
) -> Any:
    """out[row, column] = x @ weight for one block of columns; x rows are `stride` bytes apart.

    `rows` and `half` are literal. Meanwhile the weights `ahead` bytes further are fetched from memory.
    """

    def emit(
        emitter: Emitter,
        rows: int,
        half: int,
        x: Value,
        stride: Value,
        weight: Value,
        ahead: Value,
        F: Value,
        out: Value,
    ) -> None:
        step = (2 if half else 4) * COLUMNS
        sums = [[emitter.variable(splat(emitter, F32(0.0), WIDTH)) for _ in range(2)] for _ in range(rows)]
        x_rows = [emitter.at(x, row, stride) for row in range(rows)]

        def accumulate(index: Value, offset: int) -> None:
            at_x = emitter.builder.add(emitter.builder.shl(index, I64(2)), I64(offset * 4))
            pair = emitter.load_pair(emitter.at(emitter.at(weight, index, step), offset, step), half)
            for x_row, row_sums in zip(x_rows, sums, strict=True):
                factor = splat(emitter, emitter.load(emitter.builder.add(x_row, at_x), F32), WIDTH)
                for value, total in zip(pair, row_sums, strict=True):
                    emitter.set(total, emitter.fma(value, factor, emitter.get(total)))

        whole = emitter.whole(F, UNROLL)
        with emitter.loop(I64(0), whole, UNROLL) as index:
            later = emitter.at(emitter.builder.add(weight, ahead), index, step)
            for line in range(0, UNROLL * step, 64):
                emitter.prefetch(emitter.at(later, line, 1))
            for offset in range(UNROLL):
                accumulate(index, offset)
        with emitter.loop(whole, F) as index:
            accumulate(index, 0)
        for position, total in enumerate(total for row_sums in sums for total in row_sums):
            emitter.store(emitter.at(out, position * WIDTH, 4), emitter.get(total))

    return lowered(emit, types.void, rows, half, x, stride, weight, ahead, features, out)


@emitted
def gate(typing: Any, address: Any) -> Any:
    """silu(first vector) * second vector, in place of the first."""

    def emit(emitter: Emitter, address: Value) -> None:
        b = emitter.builder
        low, high = emitter.load_pair(address, 0)
        one = splat(emitter, F32(1.0), WIDTH)
        sigmoid = b.fdiv(one, b.fadd(one, emitter.exp(b.fsub(splat(emitter, F32(-0.0), WIDTH), low))))
        emitter.store(address, b.fmul(b.fmul(low, sigmoid), high))

    return lowered(emit, types.void, address)


@inlined
def half_tile(rows: int, x: int, stride: int, weight: int, ahead: int, features: int, out: int) -> None:
    if rows == 1:
        tile(1, 1, x, stride, weight, ahead, features, out)
    elif rows == 2:
        tile(2, 1, x, stride, weight, ahead, features, out)
    elif rows == 3:
        tile(3, 1, x, stride, weight, ahead, features, out)
    elif rows == 4:
        tile(4, 1, x, stride, weight, ahead, features, out)
    elif rows == 5:
        tile(5, 1, x, stride, weight, ahead, features, out)
    elif rows == 6:
        tile(6, 1, x, stride, weight, ahead, features, out)
    elif rows == 7:
        tile(7, 1, x, stride, weight, ahead, features, out)
    else:
        tile(8, 1, x, stride, weight, ahead, features, out)


@inlined
def full_tile(rows: int, x: int, stride: int, weight: int, ahead: int, features: int, out: int) -> None:
    if rows == 1:
        tile(1, 0, x, stride, weight, ahead, features, out)
    elif rows == 2:
        tile(2, 0, x, stride, weight, ahead, features, out)
    elif rows == 3:
        tile(3, 0, x, stride, weight, ahead, features, out)
    elif rows == 4:
        tile(4, 0, x, stride, weight, ahead, features, out)
    elif rows == 5:
        tile(5, 0, x, stride, weight, ahead, features, out)
    elif rows == 6:
        tile(6, 0, x, stride, weight, ahead, features, out)
    elif rows == 7:
        tile(7, 0, x, stride, weight, ahead, features, out)
    else:
        tile(8, 0, x, stride, weight, ahead, features, out)


@inlined
def finish(sums: int, rows: int, first: int, mode: int, bias: int, out: int, outputs: int) -> None:
    """Write one block's sums to columns `first` and on of `rows` rows of `out`."""
    width = WIDTH if mode == GATED else COLUMNS
    columns = min(width, outputs - first)
    for r in range(rows):
        source = sums + r * COLUMNS * 4
        if mode == GATED:
            gate(source)
        y, row = f32(source), f32(out + (r * outputs + first) * 4)
        if bias != 0:
            b = f32(bias + first * 4)
            for c in range(columns):
                y[c] = y[c] + b[c]
        if mode == ADD:
            for c in range(columns):
                row[c] = row[c] + y[c]
        else:
            for c in range(columns):
                row[c] = y[c]


@inlined
def normalise(x: int, norm: int, eps: float, out: int, rows: int, F: int) -> None:
    """out = x / sqrt(mean(x^2) + eps) * norm, row by row."""
    weight = f32(norm)
    for r in range(rows):
        source, target = f32(x + r * F * 4), f32(out + r * F * 4)
        scale = types.float32(1.0 / (dot(x + r * F * 4, x + r * F * 4, F) / F + eps) ** 0.5)
        for i in range(F):
            target[i] = source[i] * scale * weight[i]


@inlined
def panel(
    x: int,
    weight: int,
    ahead: int,
    half: int,
    F: int,
    rows: int,
    first: int,
    mode: int,
    bias: int,
    out: int,
    outputs: int,
    sums: int,
) -> None:
    """One block of columns for `rows` rows, in tiles of nearly equal height."""
    num_tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    done = 0
    for t in range(num_tiles):
        height = (rows - done + num_tiles - t - 1) // (num_tiles - t)
        if half == 1:
            half_tile(height, x + done * F * 4, F * 4, weight, ahead, F, sums)
        else:
            full_tile(height, x + done * F * 4, F * 4, weight, ahead, F, sums)
        finish(sums, height, first, mode, bias, out + done * outputs * 4, outputs)
        done += height


@kernel
def linear(block: int) -> None:
    """Arguments as in `ops_cpu.CpuOps._linear`."""
    a = i64(block)
    x, norm, eps, scratch = a[0], a[1], f64(block)[2], a[3]
    weight, half, bias, F, outputs = a[4], a[5], a[6], a[7], a[8]
    out, R, mode = a[9], a[10], a[11]
    num_blocks, chunk, panel_rows = a[12], a[13], a[14]
    if norm != 0:
        num_norms = (R + NORM_ROWS - 1) // NORM_ROWS
        n = ticket(block, 0)
        while n < num_norms:
            rows = min(NORM_ROWS, R - n * NORM_ROWS)
            offset = n * NORM_ROWS * F * 4
            normalise(x + offset, norm, eps, scratch + offset, rows, F)
            finished(block, 1)
            n = ticket(block, 0)
        wait_for(block, 1, num_norms)
        x = scratch
    sums = stack(TILE_BYTES)
    width = WIDTH if mode == GATED else COLUMNS
    block_bytes = F * COLUMNS * (2 if half == 1 else 4)
    first = ticket(block, 2) * chunk
    while first < num_blocks:
        last = min(first + chunk, num_blocks)
        for r in range(0, R, panel_rows):
            rows = min(panel_rows, R - r)
            for b in range(first, last):
                place, ahead = weight + b * block_bytes, block_bytes if b + 1 < last else 0
                panel(
                    x + r * F * 4,
                    place,
                    ahead,
                    half,
                    F,
                    rows,
                    b * width,
                    mode,
                    bias,
                    out + r * outputs * 4,
                    outputs,
                    sums,
                )
        first = ticket(block, 2) * chunk
