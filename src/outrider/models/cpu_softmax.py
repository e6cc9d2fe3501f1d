"""Softmax attention of a few query heads over a list of cache positions: the inner loops of `cpu_attention`.

    score[h, j] = q[h] . key[listed[j]]      p = exp(score - max score)
    out[h] = sum_j p[h, j] value[listed[j]] / sum_j p[h, j]

Scores are taken for `WIDTH` keys at a time, each a sum of products in lanes, ascending over the head, that a fixed tree
adds up. Values are accumulated in registers, several vectors of columns at a time, ascending over the list. Numbers of
heads are literal, so that each has its own loops; results do not depend on how many heads are taken together.

Worked example: 3 heads of 64 numbers in AVX2: a value row is read as two times 4 vectors, each used by 3 heads, so that
12 sums are in registers.
"""

from typing import Any

from numba import types

from outrider.models.cpu_threads import stack
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
    inlined,
    lane_sum,
    lane_sums,
    lowered,
    splat,
    vector,
)

__all__ = ["MAX_HEADS", "score_and_mix", "store_half"]

MAX_HEADS = 4  # query heads of one task
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
        emitter: Emitter, heads: int, half: int, q: Value, keys: Value, listed: Value, count: Value, D: Value,
        kept: Value, out: Value, row: Value,
    ) -> None:  # fmt: skip
        b = emitter.builder
        size = 2 if half else 4
        at_once = 4 if heads <= 2 or WIDTH == 16 else 2  # keys; AVX-512 has twice the registers
        whole = emitter.whole(D, WIDTH)
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
                for lanes, start, stop in ((WIDTH, I64(0), whole), (1, whole, D)):
                    zero = splat(emitter, F32(0.0), lanes)
                    sums = [[emitter.variable(zero) for _ in range(at_once)] for _ in range(heads)]
                    with emitter.loop(start, stop, lanes) as index:
                        accumulate(bases, index, lanes, sums)
                    base = emitter.at(kept if lanes == WIDTH else tail, first, lanes * 4)
                    for head in range(heads):
                        for part in range(at_once):
                            place = (head * WIDTH + part) * lanes
                            emitter.store(emitter.at(base, place, 4), emitter.get(sums[head][part]))
            for head in range(heads):
                totals = _kept_sums(emitter, emitter.at(kept, head * WIDTH * WIDTH, 4))
                rest = emitter.load(emitter.at(tail, head * WIDTH, 4), vector(F32, WIDTH))
                target = emitter.at(emitter.at(out, head, b.mul(row, I64(4))), j, 4)
                emitter.store(target, b.fadd(totals, rest))

    return lowered(emit, types.void, heads, half, q, keys, listed, count, D, kept, out, row)


def _kept_sums(emitter: Emitter, kept: Value) -> Value:
    """The lane sums of the `WIDTH` vectors stored from `kept` on."""
    return lane_sums(emitter, [emitter.load(emitter.at(kept, i * WIDTH, 4), vector(F32, WIDTH)) for i in range(WIDTH)])


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
