"""The matrix product of the CPU back end: RMSNorm before it, bias, residual or gate after it, in one parallel region.

Weights are packed in blocks of two vectors of output columns, [block][feature][2 * WIDTH], so that a tile of up to
`TILE_ROWS` rows by one block reads its weights as one stream and its sums stay in registers. In bf16 the two vectors
are interleaved: one load, one shift and one mask widen both. Where the processor multiplies pairs of bf16 numbers,
activations are rounded too, and a lane holds two features of a column, [block][pair][vector][lane][2].

Every sum y[r, o] = fma(x[r, F-1], w[o, F-1], ... fma(x[r, 0], w[o, 0], 0)) runs over the features, or pairs of them,
in ascending order in one register lane. The bits of a row hence depend on that row alone: not on the number of rows,
the tile's shape or the number of threads.

Rows are first laid out by tiles, [feature][row], normalised if needed (`rows.py`).

Example: 16 rows are two tiles of 8. A block of weights is read from memory for the first and from a cache for the
second, while each prefetches half of the next block.
"""

from typing import Any

from numba import types

from outrider.kernels.cpu.isa import has_bf16_dots
from outrider.kernels.cpu.rows import COLUMNS, FETCHED, GATED, LEVEL, dot, finish, lay_out, tile_start
from outrider.kernels.cpu.threads import draw, finished, stack, ticket, wait_for
from outrider.kernels.cpu.vector import (
    F32,
    I32,
    I64,
    TILE_ROWS,
    WIDE,
    WIDTH,
    Emitter,
    Value,
    emitted,
    f32,
    f64,
    i32,
    i64,
    inlined,
    kernel,
    lowered,
    splat,
    u16,
    vector,
)

__all__ = ["BF16", "FP32", "PAIRS", "add_normed", "collect", "embed", "linear", "scale"]

FP32, BF16, PAIRS = 0, 1, 2  # fp32 and bf16 weights, and bf16 weights in pairs of features
KINDS = (FP32, BF16, PAIRS) if has_bf16_dots() else (FP32, BF16)
BYTES = (4, 2, 2)
UNROLL = 4
TILE_BYTES = 4 * COLUMNS * TILE_ROWS
NEAR = 3072 if WIDE else 0
"""Bytes that a single tile prefetches ahead; 0 prefetches the next block. Blocks of 512-bit columns are 37 to 98 KB;
fetching them that early made eight rows about 5 % slower on a Xeon with AVX-512, as were 1, 2, 6 and 8 KB."""
EARLY = 3072
"""Bytes of a chunk's first block that are prefetched before the thread reaches it."""


@emitted
def tile(typing: Any, rows: Any, kind: Any, x: Any, weight: Any, ahead: Any, pace: Any, features: Any, out: Any) -> Any:
    """Compute out[row, column] = x[:, row] @ weight for one block of columns; x is [features][rows].

    Meanwhile the weights from `ahead` bytes on are prefetched, `pace` bytes per feature. Every height and kind of
    weights has its own loop, in which all sums are registers.
    """

    def emit(
        emitter: Emitter,
        rows: Value,
        kind: Value,
        x: Value,
        weight: Value,
        ahead: Value,
        pace: Value,
        F: Value,
        out: Value,
    ) -> None:
        number = emitter.builder.add(emitter.builder.mul(rows, I64(len(KINDS))), kind)
        cases = [(height, which) for height in range(1, TILE_ROWS + 1) for which in KINDS]
        codes = [height * len(KINDS) + which for height, which in cases]
        with emitter.cases(number, codes) as blocks:
            for (height, which), _ in zip(cases, blocks, strict=True):
                emit_tile(emitter, height, which, x, weight, ahead, pace, F, out)

    return lowered(emit, types.void, rows, kind, x, weight, ahead, pace, features, out)


def emit_tile(
    emitter: Emitter, rows: int, kind: int, x: Value, weight: Value, ahead: Value, pace: Value, F: Value, out: Value
) -> None:
    step = BYTES[kind] * COLUMNS
    sums = [[emitter.variable(splat(emitter, F32(0.0), WIDTH)) for _ in range(2)] for _ in range(rows)]

    def accumulate(x_here: Value, weight_here: Value, offset: int) -> None:
        if kind == PAIRS:
            accumulate_pairs(emitter, sums, emitter.at(x_here, offset * rows, 4), emitter.at(weight_here, offset, step))
            return
        pair = emitter.load_pair(emitter.at(weight_here, offset, step), kind)
        for row, row_sums in enumerate(sums):
            number = emitter.load(emitter.at(x_here, offset * rows + row, 4), F32)
            factor = splat(emitter, number, WIDTH)
            for value, total in zip(pair, row_sums, strict=True):
                emitter.set(total, emitter.fma(value, factor, emitter.get(total)))

    if kind == PAIRS:  # from here on, F counts pairs
        F, pace, step = emitter.builder.lshr(F, I64(1)), emitter.builder.shl(pace, I64(1)), 2 * step
    whole = emitter.whole(F, UNROLL)
    with emitter.loop(I64(0), whole, UNROLL) as index:
        later = emitter.at(emitter.builder.add(weight, ahead), index, pace)
        x_here, weight_here = emitter.at(x, index, 4 * rows), emitter.at(weight, index, step)
        for offset in range(UNROLL):
            accumulate(x_here, weight_here, offset)
            for line in range(-(-offset * step // 64) * 64, (offset + 1) * step, 64):
                emitter.prefetch(emitter.at(later, line, 1), LEVEL)
    with emitter.loop(whole, F) as index:
        accumulate(emitter.at(x, index, 4 * rows), emitter.at(weight, index, step), 0)
    for position, total in enumerate(total for row_sums in sums for total in row_sums):
        emitter.store(emitter.at(out, position * WIDTH, 4), emitter.get(total))


def accumulate_pairs(emitter: Emitter, sums: list[list[Value]], x: Value, weight: Value) -> None:
    """Add the products of one pair of features of each row with one block of columns."""
    kind = vector(I32, WIDTH)
    weights = [emitter.load(emitter.at(weight, part * WIDTH, 4), kind) for part in range(2)]
    for row, row_sums in enumerate(sums):
        factor = splat(emitter, emitter.load(emitter.at(x, row, 4), I32), WIDTH)
        for some, total in zip(weights, row_sums, strict=True):
            emitter.set(total, emitter.dot_pairs(emitter.get(total), some, factor))


@inlined
def size_of(kind: int) -> int:
    """Return the bytes of a weight."""
    return 4 if kind == FP32 else 2


@inlined
def pair_up(x: int, rows: int, F: int) -> None:
    """Replace [feature][row] in fp32 by [pair of features][row][2] in bf16, rounded to the nearest even."""
    source, target = i32(x), i32(x)
    for p in range(F // 2):
        for r in range(rows):
            low, high = source[2 * p * rows + r], source[(2 * p + 1) * rows + r]
            target[p * rows + r] = (rounded(low) & 0xFFFF) | (rounded(high) << 16)


@inlined
def prepare(kind: int, x: int, norm: int, eps: float, out: int, rows: int, F: int) -> None:
    """Lay out the rows of one tile, as pairs where the weights are."""
    lay_out(x, norm, eps, out, rows, F)
    if kind == PAIRS:
        pair_up(out, rows, F)


@inlined
def rounded(bits: int) -> int:
    """Return the upper half of an fp32 number, rounded; NaN stays NaN."""
    word = types.uint32(bits)
    up = types.uint32(word + types.uint32(0x7FFF) + ((word >> types.uint32(16)) & types.uint32(1)))
    is_nan = (word & types.uint32(0x7FFFFFFF)) > types.uint32(0x7F800000)
    half: int = types.int32((types.uint32(0x7FC00000) if is_nan else up) >> types.uint32(16))
    return half


@emitted
def fetch(typing: Any, address: Any, num_bytes: Any) -> Any:
    """Prefetch `num_bytes` (a literal) of memory."""

    def emit(emitter: Emitter, address: Value, num_bytes: int) -> None:
        for line in range(0, num_bytes, 64):
            emitter.prefetch(emitter.at(address, line, 1), LEVEL)

    return lowered(emit, types.void, address, num_bytes)


@inlined
def num_tiles_of(rows: int) -> int:
    return (rows + TILE_ROWS - 1) // TILE_ROWS


@inlined
def panel(
    x: int,
    weight: int,
    ahead: int,
    kind: int,
    F: int,
    rows: int,
    first: int,
    mode: int,
    bias: int,
    out: int,
    outputs: int,
    columns: int,
    sums: int,
) -> None:
    """Compute one block of columns for `rows` rows, laid out in tiles; the next block is `ahead` bytes away."""
    num_tiles = num_tiles_of(rows)
    pace = COLUMNS * size_of(kind) // num_tiles
    following = weight + ahead + NEAR
    if num_tiles == 1 and NEAR != 0:  # `finish` has fetched the start of the block
        ahead = NEAR + rows * FETCHED
        pace -= rows * FETCHED // F
    for t in range(num_tiles):
        start = tile_start(t, num_tiles, rows)
        height = tile_start(t + 1, num_tiles, rows) - start
        tile(height, kind, x + start * F * 4, weight, ahead + t * pace * F, pace, F, sums)
        finish(sums, height, first, columns, mode, bias, out + start * outputs * 4, outputs, following)


@kernel
def linear(block: int, lane: int) -> None:
    """Run `CpuOps._linear`, with its arguments."""
    a = i64(block)
    x, norm, eps, scratch = a[0], a[1], f64(block)[2], a[3]
    weight, kind, bias, F, outputs, out, R, mode = a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]
    num_blocks, chunk, panel_rows, columns = a[12], a[13], a[14], a[15]
    width = WIDTH if mode >= GATED else COLUMNS
    block_bytes = F * COLUMNS * size_of(kind)
    num_chunks = (num_blocks + chunk - 1) // chunk
    first = draw(block, lane, 2, num_chunks) * chunk
    if scratch != 0 and R <= TILE_ROWS:  # cheaper than sharing them between cores
        if first >= num_blocks:
            return
        fetch(weight + first * block_bytes, EARLY)
        own = scratch + lane * R * F * 4
        prepare(kind, x, norm, eps, own, R, F)
        x = own
    elif scratch != 0:
        full = R // panel_rows * (panel_rows // TILE_ROWS)  # tiles in whole panels
        done = R // panel_rows * panel_rows
        num_left = num_tiles_of(R - done)
        n = ticket(block, 0)
        while n < full + num_left:
            start, height = n * TILE_ROWS, TILE_ROWS
            if n >= full:
                start = done + tile_start(n - full, num_left, R - done)
                height = done + tile_start(n - full + 1, num_left, R - done) - start
            prepare(kind, x + start * F * 4, norm, eps, scratch + start * F * 4, height, F)
            finished(block, 1)
            n = ticket(block, 0)
        wait_for(block, 1, full + num_left)
        x = scratch
    sums = stack(TILE_BYTES)
    while first < num_blocks:
        following = draw(block, lane, 2, num_chunks) * chunk  # early, so that a chunk's last block fetches its first
        last = min(first + chunk, num_blocks)
        if NEAR != 0 and following < num_blocks:  # a tile that looks further ahead does this itself
            fetch(weight + following * block_bytes, EARLY)
        for r in range(0, R, panel_rows):
            rows = min(panel_rows, R - r)
            for b in range(first, last):
                after = b + 1 if b + 1 < last else following
                place, ahead = weight + b * block_bytes, (after - b) * block_bytes if after < num_blocks else 0
                panel(
                    x + r * F * 4,
                    place,
                    ahead,
                    kind,
                    F,
                    rows,
                    b * width,
                    mode,
                    bias,
                    out + r * outputs * 4,
                    outputs,
                    columns,
                    sums,
                )
        first = following


@kernel
def collect(block: int, lane: int) -> None:
    """Run `CpuOps.collect`, with its arguments."""
    a = i64(block)
    x, norm, eps, F, out, columns, R = a[0], a[1], f64(block)[2], a[3], a[4], a[5], a[6]
    r = ticket(block, 0)
    while r < R:
        lay_out(x + r * F * 4, norm, eps, out + r * columns * 4, 1, F)
        r = ticket(block, 0)


@kernel
def add_normed(block: int, lane: int) -> None:
    """Run the second half of `CpuOps.project_norm_add`: out[r] += x[r] / sqrt(mean(x[r]^2) + eps) * norm."""
    a = i64(block)
    x, norm, eps, F, out, R = a[0], f32(a[1]), f64(block)[2], a[3], a[4], a[5]
    r = ticket(block, 0)
    while r < R:
        source, target = f32(x + r * F * 4), f32(out + r * F * 4)
        factor = types.float32(1.0 / (dot(x + r * F * 4, x + r * F * 4, F) / F + eps) ** 0.5)
        for i in range(F):
            target[i] += source[i] * factor * norm[i]
        r = ticket(block, 0)


@kernel
def scale(block: int, lane: int) -> None:
    """Run `CpuOps.scale`, with its arguments."""
    a = i64(block)
    x, factor, F, R = a[0], types.float32(f64(block)[1]), a[2], a[3]
    r = ticket(block, 0)
    while r < R:
        row = f32(x + r * F * 4)
        for i in range(F):
            row[i] = row[i] * factor
        r = ticket(block, 0)


@kernel
def grow(block: int, lane: int) -> None:
    """Run `CpuOps.grow`, with its arguments."""
    a = i64(block)
    x, F, columns, factors, positions, R = a[0], a[1], a[2], f32(a[3]), i64(a[4]), a[5]
    r = ticket(block, 0)
    while r < R:
        row, factor = f32(x + r * F * 4), factors[positions[r]]
        for i in range(columns):
            row[i] = row[i] * factor
        r = ticket(block, 0)


@kernel
def embed(block: int, lane: int) -> None:
    """Run `CpuOps.embed`, with its arguments."""
    a = i64(block)
    table, is_bf16, F, tokens, out, R = a[0], a[1], a[2], i64(a[3]), a[4], a[5]
    r = ticket(block, 0)
    while r < R:
        if is_bf16 == 1:  # bf16 is the upper half of fp32
            source, words = u16(table + tokens[r] * F * 2), i32(out + r * F * 4)
            for i in range(F):
                words[i] = types.int32(source[i]) << 16
        else:
            numbers, target = f32(table + tokens[r] * F * 4), f32(out + r * F * 4)
            for i in range(F):
                target[i] = numbers[i]
        r = ticket(block, 0)
