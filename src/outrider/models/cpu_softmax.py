"""Softmax attention of a few query heads: the inner loops of `cpu_attention`.

    score[h, j] = q[h] . key[j]      p = exp(score - max score)      out[h] = sum_j p[h, j] value[j] / sum_j p[h, j]

The keys of a chunk of positions are turned first, [number of the head][position], so that a lane is a position and its
score one sum, ascending over the head; the turned chunk serves all rows of a task. Values are accumulated in registers,
ascending over positions. What a row does not see weighs exactly 0 and so does not change its sums. Numbers of heads are
literal, so that each has its own loops; results do not depend on how many heads or rows are taken together.

Two bf16 numbers share a 32-bit lane. Turning moves lanes and splits them afterwards; while values are accumulated, even
and odd columns are in two vectors, which are woven together at the end.

Worked example: 3 heads of 64 bf16 numbers with AVX-512: a chunk of 64 keys is 4 times 2 blocks of 16 lanes, each turned
by 64 shuffles; then each number of the turned head is 4 vectors of positions, and 3 heads make 12 sums.
"""

from collections.abc import Iterator
from typing import Any

from numba import types

from outrider.models.cpu_vector import (
    F32,
    I16,
    I32,
    I64,
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

__all__ = ["CHUNK", "MAX_HEADS", "exponentials", "mix", "score", "settle", "store_head", "turn"]

MAX_HEADS = 4  # query heads of one task
CHUNK = 4 * WIDTH  # positions whose keys are turned together


def by_case(emitter: Emitter, number: Value, codes: list[int]) -> Iterator[int]:
    """Each code, while the code for it is emitted."""
    number = I64(number) if isinstance(number, int) else number
    with emitter.cases(number, codes) as blocks:
        yield from blocks


@emitted
def turn(typing: Any, half: Any, keys: Any, values: Any, first: Any, last: Any, D: Any, out: Any) -> Any:
    """out[d, i] = keys[min(first + i, last), d] in fp32, for a chunk of keys in fp32 or, if `half`, in bf16.

    The values of these positions are fetched meanwhile, and arrive while scores are taken.
    """

    def emit(
        emitter: Emitter, half: Value, keys: Value, values: Value, first: Value, last: Value, D: Value, out: Value
    ) -> None:
        for which in by_case(emitter, half, [0, 1]):
            with emitter.loop(I64(0), I64(CHUNK), WIDTH) as start:
                here = emitter.builder.add(first, start)
                emit_turn(emitter, which, keys, values, here, last, D, emitter.at(out, start, 4))

    return lowered(emit, types.void, half, keys, values, first, last, D, out)


def emit_turn(
    emitter: Emitter, half: int, keys: Value, values: Value, first: Value, last: Value, D: Value, out: Value
) -> None:
    """One vector of keys. Their addresses are found one from the other, for there are more than registers."""
    b = emitter.builder
    size, shared = (2, 2) if half else (4, 1)  # bytes of a number, numbers of a lane
    stride, away = b.mul(D, I64(size)), b.sub(values, keys)
    start = b.select(b.icmp_signed("<", first, last), first, last)
    left = b.sub(last, start)

    def addresses(d: Value) -> Iterator[Value]:
        """Of number d of each key; keys behind the last are the last again."""
        here = emitter.at(emitter.at(keys, start, stride), d, size)
        for part in range(WIDTH):
            yield here
            here = b.add(here, b.select(b.icmp_signed("<", I64(part), left), stride, I64(0)))

    whole = emitter.whole(D, shared * WIDTH)
    with emitter.loop(I64(0), whole, shared * WIDTH) as d:
        lines = []
        for place in addresses(d):
            lines.append(emitter.load(place, vector(I32, WIDTH)))
            emitter.prefetch(b.add(place, away), 2)
        turned = [number for line in interleaved(emitter, lines) for number in emitter.numbers(line, half)]
        for row, number in enumerate(turned):
            emitter.store(emitter.at(emitter.at(out, d, 4 * CHUNK), row * CHUNK, 4), number)
    with emitter.loop(whole, D) as d:
        for part, place in enumerate(addresses(d)):
            number = emitter.load_floats(place, 1, half)
            emitter.store(emitter.at(emitter.at(out, d, 4 * CHUNK), part, 4), number)


@emitted
def score(typing: Any, heads: Any, q: Any, turned: Any, D: Any, out: Any, row: Any) -> Any:
    """out[head, i] = q[head] . turned[:, i] for a chunk; out rows are `row` numbers apart."""

    def emit(emitter: Emitter, heads: Value, *arguments: Value) -> None:
        for number in by_case(emitter, heads, list(range(1, MAX_HEADS + 1))):
            emit_score(emitter, number, *arguments)

    return lowered(emit, types.void, heads, q, turned, D, out, row)


def emit_score(emitter: Emitter, heads: int, q: Value, turned: Value, D: Value, out: Value, row: Value) -> None:
    b = emitter.builder
    at_once = 4 if WIDE or heads < 4 else 2  # vectors of positions; AVX-512 has twice the registers
    with emitter.loop(I64(0), I64(CHUNK), at_once * WIDTH) as i:
        sums = [[emitter.variable(splat(emitter, F32(0.0), WIDTH)) for _ in range(at_once)] for _ in range(heads)]
        with emitter.loop(I64(0), D) as d:
            line = emitter.at(emitter.at(turned, d, 4 * CHUNK), i, 4)
            keys = [emitter.load(emitter.at(line, part * WIDTH, 4), vector(F32, WIDTH)) for part in range(at_once)]
            for head in range(heads):
                number = emitter.load(emitter.at(emitter.at(q, head, b.mul(D, I64(4))), d, 4), F32)
                factor = splat(emitter, number, WIDTH)
                for key, total in zip(keys, sums[head], strict=True):
                    emitter.set(total, emitter.fma(key, factor, emitter.get(total)))
        for head in range(heads):
            target = emitter.at(emitter.at(out, head, b.mul(row, I64(4))), i, 4)
            for part, total in enumerate(sums[head]):
                emitter.store(emitter.at(target, part * WIDTH, 4), emitter.get(total))


@emitted
def exponentials(typing: Any, scores: Any, count: Any) -> Any:
    """scores -> exp(scores - max), in place; returns their sum. `count` is a multiple of WIDTH, at least one."""

    def emit(emitter: Emitter, scores: Value, count: Value) -> Value:
        b = emitter.builder
        kind = vector(F32, WIDTH)

        def larger(left: Value, right: Value) -> Value:
            return b.select(b.fcmp_ordered(">", left, right), left, right)

        highest = emitter.variable(splat(emitter, F32(float("-inf")), WIDTH))
        with emitter.loop(I64(0), count, WIDTH) as index:
            value, best = emitter.load(emitter.at(scores, index, 4), kind), emitter.get(highest)
            emitter.set(highest, larger(value, best))
        top = splat(emitter, folded(emitter, emitter.get(highest), larger), WIDTH)
        total = emitter.variable(splat(emitter, F32(0.0), WIDTH))
        with emitter.loop(I64(0), count, WIDTH) as index:
            place = emitter.at(scores, index, 4)
            value = emitter.exp(b.fsub(emitter.load(place, kind), top))
            emitter.store(place, value)
            emitter.set(total, b.fadd(emitter.get(total), value))
        return folded(emitter, emitter.get(total), b.fadd)

    return lowered(emit, types.float32, scores, count)


@emitted
def mix(typing: Any, heads: Any, half: Any, weights: Any, row: Any, values: Any, count: Any, D: Any, out: Any) -> Any:
    """out[head] += sum over j < count of weights[head, j] * values[j], j ascending; columns as in `settle`."""

    def emit(emitter: Emitter, heads: Value, half: Value, *arguments: Value) -> None:
        code = emitter.builder.add(emitter.builder.mul(heads, I64(2)), half)
        for number in by_case(emitter, code, list(range(2, 2 * MAX_HEADS + 2))):
            emit_mix(emitter, number // 2, number % 2, *arguments)

    return lowered(emit, types.void, heads, half, weights, row, values, count, D, out)


def emit_mix(
    emitter: Emitter, heads: int, half: int, weights: Value, row: Value, values: Value, count: Value, D: Value,
    out: Value,
) -> None:  # fmt: skip
    b = emitter.builder
    size, shared = (2, 2) if half else (4, 1)

    def columns(start: Value, loads: int, lanes: int) -> None:
        """`loads` vectors of lanes, or single numbers, from column `start` on."""
        width, per_load = (lanes, 1) if lanes == 1 else (WIDTH, shared)
        places = [
            [
                emitter.at(emitter.at(out, b.add(b.mul(D, I64(head)), start), 4), part * width, 4)
                for part in range(loads * per_load)
            ]
            for head in range(heads)
        ]
        sums = [[emitter.variable(emitter.load(place, vector(F32, width))) for place in some] for some in places]
        with emitter.loop(I64(0), count) as j:
            base = emitter.at(values, b.add(b.mul(j, D), start), size)
            if lanes == 1:
                loaded = [emitter.load_floats(base, 1, half)]
            else:
                lines = [emitter.load(emitter.at(base, n * lanes, size), vector(I32, WIDTH)) for n in range(loads)]
                loaded = [number for line in lines for number in emitter.numbers(line, half)]
            for head in range(heads):
                weight = emitter.load(emitter.at(emitter.at(weights, head, b.mul(row, I64(4))), j, 4), F32)
                factor = splat(emitter, weight, width)
                for value, total in zip(loaded, sums[head], strict=True):
                    emitter.set(total, emitter.fma(value, factor, emitter.get(total)))
        for some, totals in zip(places, sums, strict=True):
            for place, total in zip(some, totals, strict=True):
                emitter.store(place, emitter.get(total))

    lanes = shared * WIDTH
    most = (8 if heads == 1 else 4 if WIDE or heads <= 3 else 2) // shared
    whole, wider = emitter.whole(D, lanes), emitter.whole(D, most * lanes)
    for start, stop, loads, step in ((I64(0), wider, most, lanes), (wider, whole, 1, lanes), (whole, D, 1, 1)):
        with emitter.loop(start, stop, loads * step) as first:
            columns(first, loads, step)


@emitted
def settle(typing: Any, half: Any, head: Any, factor: Any, D: Any) -> Any:
    """Multiply one head of `mix` and bring its columns into order: of bf16 values, even and odd ones alternate by
    vectors."""

    def emit(emitter: Emitter, half: Value, head: Value, factor: Value, D: Value) -> None:
        b = emitter.builder
        for which in by_case(emitter, half, [0, 1]):
            shared = 2 if which else 1
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

    return lowered(emit, types.void, half, head, factor, D)


@emitted
def store_head(typing: Any, source: Any, target: Any, half: Any, D: Any) -> Any:
    """Copy one fp32 head into the cache; as bf16, if `half`, rounded to nearest, ties to even."""

    def emit(emitter: Emitter, source: Value, target: Value, half: Value, D: Value) -> None:
        whole = emitter.whole(D, WIDTH)
        for which in by_case(emitter, half, [0, 1]):
            for start, stop, lanes in ((I64(0), whole, WIDTH), (whole, D, 1)):
                with emitter.loop(start, stop, lanes) as d:
                    numbers = emitter.load(emitter.at(source, d, 4), vector(F32, lanes))
                    stored = rounded(emitter, numbers, lanes) if which else numbers
                    emitter.store(emitter.at(target, d, 2 if which else 4), stored)

    return lowered(emit, types.void, source, target, half, D)


def rounded(emitter: Emitter, numbers: Value, lanes: int) -> Value:
    """The upper halves of fp32 numbers, after adding half of what is lost, less one bit where the last kept is even."""
    b = emitter.builder
    bits = b.bitcast(numbers, vector(I32, lanes))
    odd = b.and_(b.lshr(bits, splat(emitter, I32(16), lanes)), splat(emitter, I32(1), lanes))
    raised = b.add(b.add(bits, splat(emitter, I32(0x7FFF), lanes)), odd)
    return b.trunc(b.lshr(raised, splat(emitter, I32(16), lanes)), vector(I16, lanes))
