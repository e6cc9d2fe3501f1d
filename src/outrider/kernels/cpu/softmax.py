"""Softmax attention of a few query heads: the inner loops of `attention.py`.

    score[h, j] = q[h] . key[j]      p = exp(score - max score)      out[h] = sum_j p[h, j] value[j] / sum_j p[h, j]

Keys are stored transposed, [number of the head][position], so that a lane is a position and its score one sum,
ascending over the head. Values are accumulated in registers, ascending over positions. A hidden position has weight
exactly 0 and so does not change the sums. Numbers of heads are literal, so that each has its own loops; results do not
depend on how many heads or rows are computed together.

Two bf16 numbers share a 32-bit lane, so even and odd positions of keys are in two vectors, as are even and odd columns
of values; they are interleaved at the end. Where heads are codes with a scale (`cached/kinds.py`), a score is
multiplied by its key's scale, and a weight by its value's.

Worked example: 3 heads of 64 bf16 numbers with AVX-512: each number of the keys of 64 positions is two loads and four
vectors, and 3 heads make 12 sums.
"""

from collections.abc import Iterator
from typing import Any

from numba import types

from outrider.kernels.cpu.cached.kinds import BF16, CODES, KINDS, SCALE_BYTES, SIZES, each_kind, loaded, scales_of_keys
from outrider.kernels.cpu.vector import (
    F32,
    I64,
    SUMS,
    WIDE,
    WIDTH,
    Emitter,
    Value,
    emitted,
    folded,
    interleaved,
    lowered,
    splat,
    vector,
)

__all__ = ["CHUNK", "MAX_HEADS", "PAIR", "exponentials", "mix", "score", "settle"]

MAX_HEADS = 4  # query heads of one task
PAIR = 2  # rows of one call
CHUNK = 4 * WIDTH  # positions that are scored together
REGISTERS = 24 if WIDE else 12  # registers for sums; AVX-512 has twice as many


def cases_of(emitter: Emitter, rows: Value, heads: Value, kind: Value) -> Iterator[tuple[list[tuple[int, int]], int]]:
    """Yield the (row, head) of all sums, and the kind, for each case whose code is emitted meanwhile."""
    b = emitter.builder
    kinds = len(KINDS)
    code = b.add(b.mul(b.add(b.mul(rows, I64(MAX_HEADS + 1)), heads), I64(kinds)), kind)
    shapes = [(r, h, k) for r in range(1, PAIR + 1) for h in range(1, MAX_HEADS + 1) for k in KINDS]
    with emitter.cases(code, [kinds * (r * (MAX_HEADS + 1) + h) + k for r, h, k in shapes]) as blocks:
        for (r, h, k), _ in zip(shapes, blocks, strict=True):
            yield [(row, head) for row in range(r) for head in range(h)], k


@emitted
def score(
    typing: Any, rows: Any, heads: Any, kind: Any, q: Any, pitch: Any, keys: Any, S: Any, left: Any, values: Any,
    D: Any, out: Any, line: Any,
) -> Any:  # fmt: skip
    """Compute out[row, head, i] = q[row, head] . keys[:, i] for a chunk of positions; the first `left` are needed.

    Rows of q are `pitch` bytes apart, those of keys `S` numbers, those of `out` `line` numbers. The keys of the next
    chunk are prefetched meanwhile, and the values of this one, from `values` on.
    """

    def emit(emitter: Emitter, rows: Value, heads: Value, kind: Value, *arguments: Value) -> None:
        for sums, which in cases_of(emitter, rows, heads, kind):
            emit_score(emitter, sums, which, *arguments)

    return lowered(emit, types.void, rows, heads, kind, q, pitch, keys, S, left, values, D, out, line)


def emit_score(
    emitter: Emitter, pairs: list[tuple[int, int]], kind: int, q: Value, pitch: Value, keys: Value, S: Value,
    left: Value, values: Value, D: Value, out: Value, line: Value,
) -> None:  # fmt: skip
    b = emitter.builder
    size, shared = SIZES[kind], 2 if kind == BF16 else 1  # bytes of a number, numbers of a lane
    at_once = 4 if len(pairs) * 4 <= REGISTERS else 2  # vectors of positions
    following = b.select(b.icmp_signed("<", I64(CHUNK), left), emitter.at(keys, CHUNK, size), keys)
    last_value = b.mul(b.mul(b.sub(left, I64(1)), D), I64(size))
    with emitter.loop(I64(0), I64(CHUNK), at_once * WIDTH) as i:
        places = []
        for part in range(0, at_once * WIDTH, shared * WIDTH):
            place = b.add(i, I64(part))
            place = b.select(b.icmp_signed("<", place, left), place, I64(0))  # a valid position past the end
            places.append(emitter.at(keys, place, size))
        sums = [[emitter.variable(splat(emitter, F32(0.0), WIDTH)) for _ in range(at_once)] for _ in pairs]
        with emitter.loop(I64(0), D) as d:
            away, value = b.mul(b.mul(d, S), I64(size)), b.mul(d, I64(CHUNK * size))
            value = b.select(b.icmp_signed("<", value, last_value), value, last_value)
            numbers = [number for place in places for number in loaded(emitter, b.add(place, away), kind)]
            for ahead in range(0, CHUNK * size, 64):
                emitter.prefetch(emitter.at(b.add(following, away), ahead, 1), 1)
                emitter.prefetch(emitter.at(b.add(values, value), ahead, 1), 2)
            for (row, head), totals in zip(pairs, sums, strict=True):
                place = emitter.at(emitter.at(emitter.at(q, row, pitch), head, b.mul(D, I64(4))), d, 4)
                factor = splat(emitter, emitter.load(place, F32), WIDTH)
                for key, total in zip(numbers, totals, strict=True):
                    emitter.set(total, emitter.fma(key, factor, emitter.get(total)))
        scales = [scales_of_keys(emitter, place, D, S) for place in places] if kind == CODES else []
        for number, some in enumerate(sums):
            target = emitter.at(emitter.at(out, number, b.mul(line, I64(4))), i, 4)
            totals = [emitter.get(total) for total in some]
            if kind == CODES:
                totals = [b.fmul(total, scale) for total, scale in zip(totals, scales, strict=True)]
            for part in range(0, at_once, shared):
                for place, total in enumerate(interleaved(emitter, totals[part : part + shared]), part):
                    emitter.store(emitter.at(target, place * WIDTH, 4), total)


@emitted
def exponentials(typing: Any, scores: Any, count: Any) -> Any:
    """Replace scores by exp(scores - max), and return their sum.

    `count` is a multiple of SUMS, at least one.
    """

    def emit(emitter: Emitter, scores: Value, count: Value) -> Value:
        b = emitter.builder
        kind = vector(F32, SUMS)

        def larger(left: Value, right: Value) -> Value:
            return b.select(b.fcmp_ordered(">", left, right), left, right)

        highest = emitter.variable(splat(emitter, F32(float("-inf")), SUMS))
        with emitter.loop(I64(0), count, SUMS) as index:
            value, best = emitter.load(emitter.at(scores, index, 4), kind), emitter.get(highest)
            emitter.set(highest, larger(value, best))
        top = splat(emitter, folded(emitter, emitter.get(highest), larger), SUMS)
        total = emitter.variable(splat(emitter, F32(0.0), SUMS))
        with emitter.loop(I64(0), count, SUMS) as index:
            place = emitter.at(scores, index, 4)
            value = emitter.exp(b.fsub(emitter.load(place, kind), top))
            emitter.store(place, value)
            emitter.set(total, b.fadd(emitter.get(total), value))
        return folded(emitter, emitter.get(total), b.fadd)

    return lowered(emit, types.float32, scores, count)


@emitted
def mix(
    typing: Any, rows: Any, heads: Any, kind: Any, weights: Any, line: Any, values: Any, count: Any, D: Any,
    out: Any, pitch: Any,
) -> Any:  # fmt: skip
    """Add to out[row, head] the sum over j < count of weights[row, head, j] * values[j], j ascending.

    Columns are ordered as in `settle`. Rows of weights are `line` numbers apart, those of `out` `pitch` bytes.
    """

    def emit(emitter: Emitter, rows: Value, heads: Value, kind: Value, *arguments: Value) -> None:
        for sums, which in cases_of(emitter, rows, heads, kind):
            emit_mix(emitter, sums, which, *arguments)

    return lowered(emit, types.void, rows, heads, kind, weights, line, values, count, D, out, pitch)


def emit_mix(
    emitter: Emitter, pairs: list[tuple[int, int]], kind: int, weights: Value, line: Value, values: Value,
    count: Value, D: Value, out: Value, pitch: Value,
) -> None:  # fmt: skip
    b = emitter.builder
    size, shared = SIZES[kind], 2 if kind == BF16 else 1
    stored = b.add(D, I64(SCALE_BYTES)) if kind == CODES else D

    def columns(start: Value, loads: int, lanes: int) -> None:
        """Emit `loads` vectors of lanes, or single numbers, from column `start` on."""
        width, per_load = (lanes, 1) if lanes == 1 else (WIDTH, shared)
        places = [
            [
                emitter.at(emitter.at(emitter.at(out, row, pitch), b.add(b.mul(D, I64(head)), start), 4), n * width, 4)
                for n in range(loads * per_load)
            ]
            for row, head in pairs
        ]
        sums = [[emitter.variable(emitter.load(place, vector(F32, width))) for place in some] for some in places]
        with emitter.loop(I64(0), count) as j:
            row = emitter.at(values, j, b.mul(stored, I64(size)))
            base = emitter.at(row, start, size)
            lines = [loaded(emitter, emitter.at(base, n * lanes, size), kind, width) for n in range(loads)]
            numbers = [number for some in lines for number in some]
            scale = emitter.load(b.add(row, D), F32) if kind == CODES else None
            for number, totals in enumerate(sums):
                place = emitter.at(emitter.at(weights, number, b.mul(line, I64(4))), j, 4)
                weight = emitter.load(place, F32)
                factor = splat(emitter, weight if scale is None else b.fmul(weight, scale), width)
                for value, total in zip(numbers, totals, strict=True):
                    emitter.set(total, emitter.fma(value, factor, emitter.get(total)))
        for some, totals in zip(places, sums, strict=True):
            for place, total in zip(some, totals, strict=True):
                emitter.store(place, emitter.get(total))

    lanes = shared * WIDTH
    most = next(number for number in (8, 4, 2) if len(pairs) * number <= REGISTERS or number == 2) // shared
    whole, wider = emitter.whole(D, lanes), emitter.whole(D, most * lanes)
    for start, stop, loads, step in ((I64(0), wider, most, lanes), (wider, whole, 1, lanes), (whole, D, 1, 1)):
        with emitter.loop(start, stop, loads * step) as first:
            columns(first, loads, step)


@emitted
def settle(typing: Any, kind: Any, head: Any, factor: Any, D: Any) -> Any:
    """Multiply one head of `mix`, and order its columns: even and odd bf16 columns are in alternating vectors."""

    def emit(emitter: Emitter, kind: Value, head: Value, factor: Value, D: Value) -> None:
        b = emitter.builder
        for which in each_kind(emitter, kind):
            shared = 2 if which == BF16 else 1
            whole = emitter.whole(D, shared * WIDTH)
            for start, stop, lanes, number in ((I64(0), whole, WIDTH, shared), (whole, D, 1, 1)):
                with emitter.loop(start, stop, lanes * number) as d:
                    places = [emitter.at(emitter.at(head, d, 4), part * lanes, 4) for part in range(number)]
                    scaled = [
                        b.fmul(emitter.load(place, vector(F32, lanes)), splat(emitter, factor, lanes))
                        for place in places
                    ]
                    for place, value in zip(places, interleaved(emitter, scaled), strict=True):
                        emitter.store(place, value)

    return lowered(emit, types.void, kind, head, factor, D)
