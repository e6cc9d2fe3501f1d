"""The attention of the CPU back end: rotate, write the cache, read the cache, in one parallel region of two stages.

For each row the positions it sees are first gathered into a list, the committed ones in ascending order, then the tail
in ascending order. Everything after that is defined on the list: scores are independent of each other, the sum of
exponentials runs down the list in fixed lanes, and the values are accumulated down the list by one fused multiply-add
per element. So the bits of a row depend on what it sees and not on where it is stored: a tree node whose siblings lie
between its ancestors gives what the same tokens give when committed, one row at a time or many.

Worked example: a row sees positions 0, 1, 3 of the cache. The list is [0, 1, 3], padded to whole vectors; scores beyond
the third are minus infinity, their exponentials exactly 0.

Query heads that share a key head are processed together, up to four, so that a key is loaded and widened once.
"""

from typing import Any

from numba import types

from outrider.models.cpu_linear import dot
from outrider.models.cpu_threads import finished, stack, ticket, wait_for
from outrider.models.cpu_vector import (
    F32,
    I16,
    I32,
    I64,
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
    lane_sum,
    lane_sums,
    lowered,
    splat,
    u8,
    vector,
)

__all__ = ["MAX_HEADS", "MAX_HEAD_DIM", "attention"]

MAX_HEADS = 4  # query heads of one task
MAX_HEAD_DIM = 1024
UNROLL = 4
HEAD_BYTES = 4 * MAX_HEAD_DIM
KEPT_BYTES = 4 * MAX_HEADS * WIDTH * (WIDTH + 1)


@emitted
def score(
    typing: Any,
    heads: Any,
    half: Any,
    q: Any,
    keys: Any,
    listed: Any,
    count: Any,
    D: Any,
    kept: Any,
    out: Any,
    row: Any,
) -> Any:
    """out[head, j] = q[head] . keys[listed[j]] for j < count, a multiple of WIDTH; out rows are `row` numbers apart."""

    def emit(
        emitter: Emitter,
        heads: int,
        half: int,
        q: Value,
        keys: Value,
        listed: Value,
        count: Value,
        D: Value,
        kept: Value,
        out: Value,
        row: Value,
    ) -> None:
        b = emitter.builder
        size = 2 if half else 4
        at_once = 4 if heads <= 2 else 2
        whole, wider = emitter.whole(D, WIDTH), emitter.whole(D, UNROLL * WIDTH)
        tail = emitter.at(kept, heads * WIDTH * WIDTH, 4)

        def accumulate(bases: list[Value], index: Value, lanes: int, sums: list[list[Value]]) -> None:
            loaded = [emitter.load_floats(emitter.at(base, index, size), lanes, half) for base in bases]
            for head in range(heads):
                query = emitter.at(emitter.at(q, head, b.mul(D, I64(4))), index, 4)
                factor = emitter.load(query, vector(F32, lanes))
                for key, total in zip(loaded, sums[head], strict=True):
                    emitter.set(total, emitter.fma(key, factor, emitter.get(total)))

        with emitter.loop(I64(0), count, WIDTH) as j:
            with emitter.loop(I64(0), I64(WIDTH), at_once) as first:
                bases = []
                for part in range(at_once):
                    position = emitter.load(emitter.at(emitter.at(listed, b.add(j, first), 4), part, 4), I32)
                    bases.append(emitter.at(keys, b.sext(position, I64), b.mul(D, I64(size))))
                for lanes, end in ((WIDTH, whole), (1, D)):
                    zero = splat(emitter, F32(0.0), lanes)
                    sums = [[emitter.variable(zero) for _ in range(at_once)] for _ in range(heads)]
                    if lanes == WIDTH:
                        with emitter.loop(I64(0), wider, UNROLL * WIDTH) as index:
                            for part in range(UNROLL):
                                accumulate(bases, b.add(index, I64(part * WIDTH)), lanes, sums)
                    with emitter.loop(wider if lanes == WIDTH else whole, end, lanes) as index:
                        accumulate(bases, index, lanes, sums)
                    base = emitter.at(kept if lanes == WIDTH else tail, first, lanes * 4)
                    for head in range(heads):
                        for part in range(at_once):
                            place = (head * WIDTH + part) * lanes
                            emitter.store(emitter.at(base, place, 4), emitter.get(sums[head][part]))
            for head in range(heads):
                places = [emitter.at(kept, (head * WIDTH + lane) * WIDTH, 4) for lane in range(WIDTH)]
                total = lane_sums(emitter, [emitter.load(place, vector(F32, WIDTH)) for place in places])
                rest = emitter.load(emitter.at(tail, head * WIDTH, 4), vector(F32, WIDTH))
                target = emitter.at(emitter.at(out, head, b.mul(row, I64(4))), j, 4)
                emitter.store(target, b.fadd(total, rest))

    return lowered(emit, types.void, heads, half, q, keys, listed, count, D, kept, out, row)


@emitted
def mix(
    typing: Any, heads: Any, half: Any, weights: Any, row: Any, values: Any, listed: Any, count: Any, D: Any, out: Any
) -> Any:
    """out[head] = sum over j < count of weights[head, j] * values[listed[j]], j ascending."""

    def emit(
        emitter: Emitter,
        heads: int,
        half: int,
        weights: Value,
        row: Value,
        values: Value,
        listed: Value,
        count: Value,
        D: Value,
        out: Value,
    ) -> None:
        b = emitter.builder
        size = 2 if half else 4

        def columns(start: Value, vectors: int, lanes: int) -> None:
            zero = splat(emitter, F32(0.0), lanes)
            sums = [[emitter.variable(zero) for _ in range(vectors)] for _ in range(heads)]
            with emitter.loop(I64(0), count) as j:
                position = b.sext(emitter.load(emitter.at(listed, j, 4), I32), I64)
                base = emitter.at(values, b.add(b.mul(position, D), start), size)
                loaded = [emitter.load_floats(emitter.at(base, v * lanes, size), lanes, half) for v in range(vectors)]
                for head in range(heads):
                    weight = emitter.load(emitter.at(emitter.at(weights, head, b.mul(row, I64(4))), j, 4), F32)
                    factor = splat(emitter, weight, lanes)
                    for value, total in zip(loaded, sums[head], strict=True):
                        emitter.set(total, emitter.fma(value, factor, emitter.get(total)))
            for head in range(heads):
                for v in range(vectors):
                    target = emitter.at(emitter.at(out, b.add(b.mul(D, I64(head)), start), 4), v * lanes, 4)
                    emitter.store(target, emitter.get(sums[head][v]))

        wide = 8 if heads == 1 else 4 if heads <= 3 else 2
        whole, wider = emitter.whole(D, WIDTH), emitter.whole(D, wide * WIDTH)
        for start, stop, vectors, lanes in ((I64(0), wider, wide, WIDTH), (wider, whole, 1, WIDTH), (whole, D, 1, 1)):
            with emitter.loop(start, stop, vectors * lanes) as first:
                columns(first, vectors, lanes)

    return lowered(emit, types.void, heads, half, weights, row, values, listed, count, D, out)


@emitted
def exponentials(typing: Any, scores: Any, count: Any) -> Any:
    """scores -> exp(scores - max), in place; returns their sum. `count` is a multiple of WIDTH, at least one."""

    def emit(emitter: Emitter, scores: Value, count: Value) -> Value:
        b = emitter.builder
        kind = vector(F32, WIDTH)
        highest = emitter.variable(splat(emitter, F32(float("-inf")), WIDTH))
        with emitter.loop(I64(0), count, WIDTH) as index:
            value, best = emitter.load(emitter.at(scores, index, 4), kind), emitter.get(highest)
            emitter.set(highest, b.select(b.fcmp_ordered(">", value, best), value, best))
        lanes = emitter.get(highest)
        top = b.extract_element(lanes, I32(0))
        for lane in range(1, WIDTH):
            value = b.extract_element(lanes, I32(lane))
            top = b.select(b.fcmp_ordered(">", value, top), value, top)
        top = splat(emitter, top, WIDTH)
        total = emitter.variable(splat(emitter, F32(0.0), WIDTH))
        with emitter.loop(I64(0), count, WIDTH) as index:
            place = emitter.at(scores, index, 4)
            value = emitter.exp(b.fsub(emitter.load(place, kind), top))
            emitter.store(place, value)
            emitter.set(total, b.fadd(emitter.get(total), value))
        return lane_sum(emitter, emitter.get(total))

    return lowered(emit, types.float32, scores, count)


@emitted
def store_half(typing: Any, address: Any, number: Any) -> Any:
    """Write an fp32 number as bf16, rounded to nearest, ties to even."""

    def emit(emitter: Emitter, address: Value, number: Value) -> None:
        b = emitter.builder
        bits = b.bitcast(number, I32)
        odd = b.and_(b.lshr(bits, I32(16)), I32(1))
        rounded = b.add(b.add(bits, I32(0x7FFF)), odd)
        emitter.store(address, b.trunc(b.lshr(rounded, I32(16)), I16))

    return lowered(emit, types.void, address, number)


@inlined
def score_and_mix(
    heads: int, half: int, q: int, keys: int, values: int, listed: int, count: int, D: int, scores: int, row: int
) -> None:
    """Attention of `heads` queries at `q` over the listed positions; the result replaces the queries."""
    kept = stack(KEPT_BYTES)
    padded = (count + WIDTH - 1) // WIDTH * WIDTH
    if heads == 1:
        if half == 1:
            score(1, 1, q, keys, listed, padded, D, kept, scores, row)
        else:
            score(1, 0, q, keys, listed, padded, D, kept, scores, row)
    elif heads == 2:
        if half == 1:
            score(2, 1, q, keys, listed, padded, D, kept, scores, row)
        else:
            score(2, 0, q, keys, listed, padded, D, kept, scores, row)
    elif heads == 3:
        if half == 1:
            score(3, 1, q, keys, listed, padded, D, kept, scores, row)
        else:
            score(3, 0, q, keys, listed, padded, D, kept, scores, row)
    elif half == 1:
        score(4, 1, q, keys, listed, padded, D, kept, scores, row)
    else:
        score(4, 0, q, keys, listed, padded, D, kept, scores, row)
    sums = f32(kept)
    for h in range(heads):
        line = f32(scores + h * row * 4)
        for j in range(count, padded):
            line[j] = -float("inf")
        sums[h] = exponentials(scores + h * row * 4, padded)
    mix_values(heads, half, scores, row, values, listed, count, D, q)
    for h in range(heads):
        result = f32(q + h * D * 4)
        share = types.float32(1.0) / sums[h]
        for d in range(D):
            result[d] = result[d] * share


@inlined
def mix_values(
    heads: int, half: int, scores: int, row: int, values: int, listed: int, count: int, D: int, out: int
) -> None:
    if heads == 1:
        if half == 1:
            mix(1, 1, scores, row, values, listed, count, D, out)
        else:
            mix(1, 0, scores, row, values, listed, count, D, out)
    elif heads == 2:
        if half == 1:
            mix(2, 1, scores, row, values, listed, count, D, out)
        else:
            mix(2, 0, scores, row, values, listed, count, D, out)
    elif heads == 3:
        if half == 1:
            mix(3, 1, scores, row, values, listed, count, D, out)
        else:
            mix(3, 0, scores, row, values, listed, count, D, out)
    elif half == 1:
        mix(4, 1, scores, row, values, listed, count, D, out)
    else:
        mix(4, 0, scores, row, values, listed, count, D, out)


@inlined
def prepare_head(source: int, norm: int, eps: float, cos: int, sin: int, D: int, scale: float, out: int) -> None:
    """out = rotate(norm(source)) * scale for one head; `norm` 0 leaves the norm out."""
    x, y, c, s = f32(source), f32(out), f32(cos), f32(sin)
    half = D // 2
    if norm != 0:
        weight = f32(norm)
        factor = types.float32(1.0 / (dot(source, source, D) / D + eps) ** 0.5)
        for d in range(D):
            y[d] = x[d] * factor * weight[d]
    else:
        for d in range(D):
            y[d] = x[d]
    multiplier = types.float32(scale)
    for d in range(half):
        left, right = y[d], y[d + half]
        y[d] = (left * c[d] - right * s[d]) * multiplier
        y[d + half] = (right * c[d] + left * s[d]) * multiplier


@inlined
def write_head(source: int, target: int, half: int, D: int) -> None:
    """Copy one head into the cache, in the cache's dtype."""
    x = f32(source)
    if half == 1:
        for d in range(D):
            store_half(target + d * 2, x[d])
    else:
        y = f32(target)
        for d in range(D):
            y[d] = x[d]


@inlined
def place_row(block: int, r: int) -> None:
    """Rotate row r's queries into the output and write its keys and values into the cache."""
    a = i64(block)
    H, G, D, S, M = a[18], a[19], a[20], a[21], a[16]
    half = a[22]
    size = 2 if half == 1 else 4
    position, slot, write = i64(a[12])[r], i64(a[10])[r // M], i64(a[13])[r]
    cos, sin = a[2] + position * D * 2, a[3] + position * D * 2
    eps, scale = f64(block)[6], f64(block)[7]
    row = a[0] + r * (H + 2 * G) * D * 4
    for h in range(H):
        prepare_head(row + h * D * 4, a[4], eps, cos, sin, D, scale, a[1] + (r * H + h) * D * 4)
    head = stack(HEAD_BYTES)
    for g in range(G):
        place = ((slot * G + g) * S + write) * D * size
        prepare_head(row + (H + g) * D * 4, a[5], eps, cos, sin, D, 1.0, head)
        write_head(head, a[8] + place, half, D)
        write_head(row + (H + G + g) * D * 4, a[9] + place, half, D)


@inlined
def list_visible(block: int, b: int, m: int, listed: int) -> int:
    """Write the positions that row (b, m) sees, padded to whole vectors with the last; return their number."""
    a = i64(block)
    M, T, window, length = a[16], a[17], a[23], i64(a[11])[b]
    positions = i32(listed)
    first = max(0, i64(a[12])[b * M + m] - window + 1) if window > 0 else 0
    count = 0
    for position in range(first, length):
        positions[count] = types.int32(position)
        count += 1
    if a[14] == 0:
        for t in range(max(0, m - window + 1) if window > 0 else 0, m + 1):
            positions[count] = types.int32(length + t)
            count += 1
    else:
        mask = u8(a[14] + (b * M + m) * T)
        for t in range(T):
            if mask[t] != 0:
                positions[count] = types.int32(length + t)
                count += 1
    if count > 0:
        for extra in range(count, (count + WIDTH - 1) // WIDTH * WIDTH):
            positions[extra] = positions[count - 1]
    return count


@inlined
def attend_row(block: int, b: int, m: int, g: int, h: int, heads: int, listed: int, scores: int, row: int) -> None:
    """Query heads h .. h + heads - 1, all of key head g, of row (b, m)."""
    a = i64(block)
    H, G, D, S, M = a[18], a[19], a[20], a[21], a[16]
    half = a[22]
    count = list_visible(block, b, m, listed)
    q = a[1] + ((b * M + m) * H + h) * D * 4
    if count == 0:
        result = f32(q)
        for d in range(heads * D):
            result[d] = types.float32(0.0)
        return
    base = (i64(a[10])[b] * G + g) * S * D * (2 if half == 1 else 4)
    score_and_mix(heads, half, q, a[8] + base, a[9] + base, listed, count, D, scores, row)


@kernel
def attention(block: int) -> None:
    """Arguments as in `ops_cpu.CpuOps.attend`."""
    a = i64(block)
    R, M, H, G = a[15] * a[16], a[16], a[18], a[19]
    r = ticket(block, 0)
    while r < R:
        place_row(block, r)
        finished(block, 1)
        r = ticket(block, 0)
    wait_for(block, 1, R)
    row, heads = a[25], a[26]
    group = H // G
    parts = (group + heads - 1) // heads
    task = ticket(block, 2)
    if task >= R * G * parts:
        return
    listed = a[24] + ticket(block, 3) * row * 4 * (1 + MAX_HEADS)  # each thread that has a task has its own scratch
    scores = listed + row * 4
    while task < R * G * parts:
        part, pair = task % parts, task // parts
        g, r = pair % G, pair // G
        first = part * heads
        attend_row(block, r // M, r % M, g, g * group + first, min(heads, group - first), listed, scores, row)
        task = ticket(block, 2)
