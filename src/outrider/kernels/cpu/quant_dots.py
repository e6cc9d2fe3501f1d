"""Sums of products of unsigned codes and signed activations, exact, by the instructions of each set.

A lane of 32 bits holds four consecutive features of one column. Its sum of four products is

    one instruction     with VNNI (`vpdpbusd`)
    two or more         with AVX2: `vpmaddubsw` multiplies bytes and adds pairs into 16 bits, `vpmaddwd` adds those into
                        32. Sums of 16 bits hold 8 pairs of 4-bit codes, 4 of 5 bits, 2 of 6 bits; codes of 8 bits are
                        multiplied as two halves of 4 bits
    plain arithmetic    elsewhere

Every sum is exact, so its bits are the same whichever way it is computed.

Example: the codes 15 15 15 15 and activations 127 127 127 127 give 2 * 3810 in 16 bits each, 7620 in 32.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir

from outrider.kernels.cpu.vector import I8, I16, I32, Emitter, Value, splat, vector

__all__ = ["dots", "looked_up"]

Broadcast = Callable[[int, int], Value]
"""(row, group of four features) -> those four activations in every lane, as bytes."""

PAIRS = {4: 8, 5: 4, 6: 2}
"""Sums of pairs of products, by the bits of a code, that 16 bits hold: 2 * 15 * 127 * 8 < 2 ** 15."""


def dots(
    emitter: Emitter, isa: str, lanes: int, bits: int, codes: Sequence[Value], rows: int, x: Broadcast
) -> list[Value]:
    """Return one vector of 32-bit sums for each row, over all groups of four features in `codes`."""
    if isa in ("vnni", "avxvnni", "amx"):
        return _by_dot_products(emitter, lanes, codes, rows, x)
    if isa in ("avx2", "avx512"):
        return _by_pairs(emitter, lanes, bits, codes, rows, x)
    return _by_arithmetic(emitter, lanes, codes, rows, x)


def looked_up(emitter: Emitter, isa: str, lanes: int, table: Sequence[int], codes: Value) -> Value:
    """Return the table's numbers, below 256, for a vector of 4-bit codes."""
    b, kind = emitter.builder, vector(I8, 4 * lanes)
    if isa != "portable":
        name = "llvm.x86.avx2.pshuf.b" if lanes == 8 else "llvm.x86.avx512.pshuf.b.512"
        return emitter.intrinsic(name, kind, kind(list(table) * (lanes // 4)), codes)
    found = kind([0] * (4 * lanes))
    for code, number in enumerate(table):
        is_code = b.icmp_unsigned("==", codes, splat(emitter, I8(code), 4 * lanes))
        found = b.select(is_code, splat(emitter, I8(number), 4 * lanes), found)
    return found


def _by_dot_products(emitter: Emitter, lanes: int, codes: Sequence[Value], rows: int, x: Broadcast) -> list[Value]:
    chains = 2 if rows <= 4 else 1  # few rows alone would wait for each other's results
    sums = [[splat(emitter, I32(0), lanes) for _ in range(chains)] for _ in range(rows)]
    for group, code in enumerate(codes):
        for row, row_sums in enumerate(sums):
            row_sums[group % chains] = _dot(emitter, lanes, row_sums[group % chains], code, x(row, group))
    return [emitter.builder.add(*row_sums) if chains == 2 else row_sums[0] for row_sums in sums]


def _dot(emitter: Emitter, lanes: int, total: Value, code: Value, x: Value) -> Value:
    """Emit `vpdpbusd`."""
    kind = vector(I32, lanes)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return emitter.intrinsic(name, kind, total, emitter.builder.bitcast(code, kind), emitter.builder.bitcast(x, kind))


def _by_pairs(emitter: Emitter, lanes: int, bits: int, codes: Sequence[Value], rows: int, x: Broadcast) -> list[Value]:
    b = emitter.builder
    if bits == 8:
        planes = [(0, 1), (4, 16)]  # shift of a half, and its weight
        limit = PAIRS[4]
    else:
        planes, limit = [(0, 1)], PAIRS[bits]
    sums: list[Value] = [None] * rows
    for start in range(0, len(codes), limit):
        pairs: list[list[Value]] = [[None] * len(planes) for _ in range(rows)]
        for group in range(start, min(start + limit, len(codes))):
            for plane, (shift, _) in enumerate(planes):
                some = _half(emitter, lanes, codes[group], shift) if bits == 8 else codes[group]
                for row in range(rows):
                    product = _pairs(emitter, lanes, some, x(row, group))
                    before = pairs[row][plane]
                    pairs[row][plane] = kept(emitter, product if before is None else b.add(before, product))
        for row in range(rows):
            for plane, (_, weight) in enumerate(planes):
                some = _widened(emitter, lanes, pairs[row][plane], weight)
                sums[row] = some if sums[row] is None else b.add(sums[row], some)
    return sums


def _half(emitter: Emitter, lanes: int, codes: Value, shift: int) -> Value:
    """Return 4 bits of each byte."""
    b = emitter.builder
    if shift:
        words = b.bitcast(codes, vector(I16, 2 * lanes))
        codes = b.bitcast(b.lshr(words, splat(emitter, I16(shift), 2 * lanes)), codes.type)
    return b.and_(codes, splat(emitter, I8(15), 4 * lanes))


def _pairs(emitter: Emitter, lanes: int, codes: Value, x: Value) -> Value:
    """Emit `vpmaddubsw`."""
    name = "llvm.x86.avx2.pmadd.ub.sw" if lanes == 8 else "llvm.x86.avx512.pmaddubs.w.512"
    return emitter.intrinsic(name, vector(I16, 2 * lanes), codes, x)


def kept(emitter: Emitter, some: Value) -> Value:
    """Return the same vector, computed here: with 16 registers LLVM would go row by row, and spill the codes."""
    if some.type.count * some.type.element.width > 256:
        return some
    signature = ir.FunctionType(some.type, [some.type])
    return emitter.builder.asm(signature, "", "=x,0", [some], side_effect=True)


def _widened(emitter: Emitter, lanes: int, pairs: Value, weight: int) -> Value:
    """Emit `vpmaddwd` with a constant."""
    name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.avx512.pmaddw.d.512"
    return emitter.intrinsic(name, vector(I32, lanes), pairs, splat(emitter, I16(weight), 2 * lanes))


def _by_arithmetic(emitter: Emitter, lanes: int, codes: Sequence[Value], rows: int, x: Broadcast) -> list[Value]:
    b, wide = emitter.builder, vector(I32, 4 * lanes)
    sums: list[Value] = [splat(emitter, I32(0), lanes)] * rows
    for group, code in enumerate(codes):
        numbers = b.zext(code, wide)
        for row in range(rows):
            products = b.mul(numbers, b.sext(x(row, group), wide))
            for part in range(4):
                order = vector(I32, lanes)([4 * lane + part for lane in range(lanes)])
                sums[row] = b.add(sums[row], b.shuffle_vector(products, products, order))
    return sums
