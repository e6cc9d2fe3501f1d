"""The writing of one head of keys or values into the cache, rounded to the cache's kind.

A head is rounded by itself alone, so a cached position does not depend on the others. As codes,

    scale = max(max |x| / 127, 2^-126)        code = round(x / scale), ties to even

A head that holds a number that is not finite has a scale that is not finite: whoever reads it gets NaN.

Example: the head 1.27 -0.5 0 ... is stored as the codes 127 -50 0 ... and the scale 0.01.
"""

from typing import Any

from numba import types

from outrider.kernels.cpu.cached.kinds import BF16, CODES, SCALE_BYTES, SIZES, each_kind
from outrider.kernels.cpu.vector import (
    F32,
    I8,
    I16,
    I32,
    I64,
    WIDTH,
    Emitter,
    Value,
    emitted,
    folded,
    lowered,
    splat,
    vector,
)

__all__ = ["store_column", "store_head"]

STEPS = 127.0
LEAST = 2.0**-126
ROUND = 12582912.0
"""1.5 * 2 ** 23: adding it to a small number rounds to an integer."""


@emitted
def store_head(typing: Any, source: Any, target: Any, kind: Any, D: Any) -> Any:
    """Store one fp32 head; bf16 is rounded to nearest, ties to even."""

    def emit(emitter: Emitter, source: Value, target: Value, kind: Value, D: Value) -> None:
        for which in each_kind(emitter, kind):
            emit_head(emitter, source, target, which, D, None)

    return lowered(emit, types.void, source, target, kind, D)


@emitted
def store_column(typing: Any, source: Any, target: Any, kind: Any, D: Any, S: Any) -> Any:
    """Store as `store_head` does, with numbers, and the bytes of a scale, `S` apart."""

    def emit(emitter: Emitter, source: Value, target: Value, kind: Value, D: Value, S: Value) -> None:
        for which in each_kind(emitter, kind):
            emit_head(emitter, source, target, which, D, S)

    return lowered(emit, types.void, source, target, kind, D, S)


def emit_head(emitter: Emitter, source: Value, target: Value, kind: int, D: Value, S: Value | None) -> None:
    """Store a head whose numbers are `S` apart, or side by side."""
    pitch = I64(SIZES[kind]) if S is None else emitter.builder.mul(S, I64(SIZES[kind]))

    def put(first: Value, stored: Value, lanes: int) -> None:
        if S is None or lanes == 1:
            emitter.store(emitter.at(target, first, pitch), stored)
            return
        for lane in range(lanes):
            place = emitter.at(target, emitter.builder.add(first, I64(lane)), pitch)
            emitter.store(place, emitter.builder.extract_element(stored, I32(lane)))

    scale = scale_of(emitter, source, D) if kind == CODES else None
    whole = emitter.whole(D, WIDTH)
    for start, stop, lanes in ((I64(0), whole, WIDTH), (whole, D, 1)):
        with emitter.loop(start, stop, lanes) as d:
            numbers = emitter.load(emitter.at(source, d, 4), vector(F32, lanes))
            if scale is not None:
                numbers = codes(emitter, numbers, scale, lanes)
            elif kind == BF16:
                numbers = rounded(emitter, numbers, lanes)
            put(d, numbers, lanes)
    if scale is not None:
        put(D, emitter.builder.bitcast(scale, vector(I8, SCALE_BYTES)), SCALE_BYTES)


def scale_of(emitter: Emitter, source: Value, D: Value) -> Value:
    """Return the scale of a head."""
    b = emitter.builder

    def larger(left: Value, right: Value) -> Value:
        return b.select(b.fcmp_ordered(">", left, right), left, right)

    # 0 * x is 0, or NaN for a number that is not finite
    most, lost = (emitter.variable(splat(emitter, F32(0.0), WIDTH)) for _ in "ml")
    last_most, last_lost = (emitter.variable(F32(0.0)) for _ in "ml")
    whole = emitter.whole(D, WIDTH)
    for start, stop, lanes, top, rest in ((I64(0), whole, WIDTH, most, lost), (whole, D, 1, last_most, last_lost)):
        with emitter.loop(start, stop, lanes) as d:
            numbers = emitter.load(emitter.at(source, d, 4), vector(F32, lanes))
            negative = b.fsub(splat(emitter, F32(-0.0), lanes), numbers)
            emitter.set(top, larger(larger(numbers, negative), emitter.get(top)))
            emitter.set(rest, emitter.fma(numbers, splat(emitter, F32(0.0), lanes), emitter.get(rest)))
    largest = larger(folded(emitter, emitter.get(most), larger), emitter.get(last_most))
    nothing = b.fadd(folded(emitter, emitter.get(lost), b.fadd), emitter.get(last_lost))
    return b.fadd(larger(b.fdiv(largest, F32(STEPS)), F32(LEAST)), nothing)


def codes(emitter: Emitter, numbers: Value, scale: Value, lanes: int) -> Value:
    """Return the int8 codes of numbers; those of a scale that is not finite are any."""
    b = emitter.builder
    steps = b.fdiv(numbers, splat(emitter, scale, lanes))
    for sign, bound in (("<", STEPS), (">", -STEPS)):
        limit = splat(emitter, F32(bound), lanes)
        steps = b.select(b.fcmp_ordered(sign, steps, limit), steps, limit)
    magic = splat(emitter, F32(ROUND), lanes)
    whole = b.fsub(b.fadd(steps, magic), magic)
    return b.trunc(b.fptosi(whole, vector(I32, lanes)), vector(I8, lanes))


def rounded(emitter: Emitter, numbers: Value, lanes: int) -> Value:
    """Return the upper halves of fp32 numbers, rounded to nearest, ties to even."""
    b = emitter.builder
    bits = b.bitcast(numbers, vector(I32, lanes))
    odd = b.and_(b.lshr(bits, splat(emitter, I32(16), lanes)), splat(emitter, I32(1), lanes))
    raised = b.add(b.add(bits, splat(emitter, I32(0x7FFF), lanes)), odd)
    return b.trunc(b.lshr(raised, splat(emitter, I32(16), lanes)), vector(I16, lanes))
