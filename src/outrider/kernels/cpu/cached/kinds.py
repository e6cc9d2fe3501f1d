"""The kinds of cached numbers, and how a kernel reads each as fp32.

    PLAIN   fp32
    BF16    two numbers share a 32-bit lane: a vector of lanes is two of numbers
    CODES   a head is D int8 codes, then the four bytes of their fp32 scale: number = code * scale

Keys are transposed, so the bytes of their scales are the rows behind the D rows of codes.

Example: a head of 64 numbers takes 256 bytes, 128, or 68.
"""

from collections.abc import Iterator

from outrider.kernels.cpu.vector import F32, I8, I32, I64, WIDTH, Emitter, Value, splat, vector

__all__ = ["BF16", "CODES", "KINDS", "PLAIN", "SCALE_BYTES", "SIZES", "each_kind", "loaded", "scales_of_keys"]

PLAIN, BF16, CODES = KINDS = range(3)
SIZES = (4, 2, 1)
"""Bytes of a number of each kind."""
SCALE_BYTES = 4


def each_kind(emitter: Emitter, kind: Value) -> Iterator[int]:
    """Yield each kind; the code emitted meanwhile is for that value of `kind`."""
    with emitter.cases(kind, list(KINDS)) as blocks:
        yield from blocks


def loaded(emitter: Emitter, place: Value, kind: int, lanes: int = WIDTH) -> list[Value]:
    """Load `lanes` lanes, all or one, as vectors of fp32: two for bf16; codes come without their scale."""
    if kind == CODES:
        codes = emitter.load(place, vector(I8, lanes))
        return [emitter.builder.sitofp(emitter.builder.sext(codes, vector(I32, lanes)), vector(F32, lanes))]
    if lanes == 1:
        return [emitter.load_floats(place, 1, kind)]
    return emitter.numbers(emitter.load(place, vector(I32, WIDTH)), kind)


def scales_of_keys(emitter: Emitter, keys: Value, D: Value, S: Value) -> Value:
    """Return the scales of `WIDTH` positions of transposed keys."""
    b, lanes = emitter.builder, vector(I32, WIDTH)
    bits = splat(emitter, I32(0), WIDTH)
    for byte in range(SCALE_BYTES):
        row = emitter.load(b.add(keys, b.mul(b.add(D, I64(byte)), S)), vector(I8, WIDTH))
        bits = b.or_(bits, b.shl(b.zext(row, lanes), splat(emitter, I32(8 * byte), WIDTH)))
    return b.bitcast(bits, vector(F32, WIDTH))
