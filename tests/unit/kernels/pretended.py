"""Another processor's instructions, computed by plain arithmetic: to test the kernels of sets that this one lacks.

`pretend("vnni")`, called before any kernel is imported, reports the features of that set, and replaces its
instructions by what their manual says they do. Vectors of 512 bits are split by LLVM. Nothing is cached.
"""

import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils

FEATURES = {
    "avx2": (),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    "avxvnni": ("avxvnni",),
    "amx": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "amx-tile", "amx-int8"),
}


def pretend(isa: str) -> None:
    assert "outrider.kernels.cpu.vector" not in sys.modules, "kernels are already imported"
    from outrider.kernels.cpu import isa as sets

    own = sets.host_features()
    features = {name: has for name, has in own.items() if not name.startswith(("avx512", "amx", "avxvnni"))}
    features |= dict.fromkeys(FEATURES[isa], True)
    sets.host_features = lambda: features
    sets._may_use_tiles = lambda: True
    from outrider.kernels.cpu import vector

    real = vector.Emitter.intrinsic

    def intrinsic(emitter: Any, name: str, result: Any, *arguments: Any) -> Any:
        for key, meaning in MEANINGS.items():
            if key in name:
                function = function_of(emitter.builder.module, name, meaning, result, arguments)
                return emitter.builder.call(function, arguments)
        return real(emitter, name, result, *arguments)

    vector.Emitter.intrinsic = intrinsic


def function_of(module: Any, name: str, meaning: Any, result: Any, arguments: Any) -> Any:
    """Return a function of the module that does what the instruction does; inlined, compiling would take minutes."""
    name = "pretended." + name
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(result, [argument.type for argument in arguments]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    produced = meaning(b, result, *function.args)
    b.ret_void() if isinstance(result, ir.VoidType) else b.ret(produced)
    return function


def lanes(kind: Any, some: list[int]) -> Any:
    return ir.VectorType(ir.IntType(32), len(some))(some)


def bytes_of(b: Any, some: Any) -> Any:
    return b.bitcast(some, ir.VectorType(ir.IntType(8), some.type.count * some.type.element.width // 8))


def summed(b: Any, products: Any, together: int) -> Any:
    """Sum neighbouring lanes."""
    count = products.type.count // together
    total = None
    for part in range(together):
        some = b.shuffle_vector(products, products, lanes(products, [together * i + part for i in range(count)]))
        total = some if total is None else b.add(total, some)
    return total


def products_of(b: Any, unsigned: Any, signed: Any) -> Any:
    unsigned, signed = bytes_of(b, unsigned), bytes_of(b, signed)
    wide = ir.VectorType(ir.IntType(32), unsigned.type.count)
    return b.mul(b.zext(unsigned, wide), b.sext(signed, wide))


def dpbusd(b: Any, result: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """VPDPBUSD: four products of an unsigned and a signed byte are added to each 32-bit lane."""
    return b.add(total, summed(b, products_of(b, unsigned, signed), 4))


def maddubs(b: Any, result: Any, unsigned: Any, signed: Any) -> Any:
    """VPMADDUBSW: two products are added, saturated to 16 bits."""
    total = summed(b, products_of(b, unsigned, signed), 2)
    low, high = (total.type([limit] * total.type.count) for limit in (-(2**15), 2**15 - 1))
    total = b.select(b.icmp_signed("<", total, low), low, total)
    return b.trunc(b.select(b.icmp_signed(">", total, high), high, total), result)


def maddwd(b: Any, result: Any, left: Any, right: Any) -> Any:
    """VPMADDWD: two products of 16-bit numbers are added."""
    wide = ir.VectorType(ir.IntType(32), left.type.count)
    return summed(b, b.mul(b.sext(left, wide), b.sext(right, wide)), 2)


def shuffled(b: Any, result: Any, table: Any, index: Any) -> Any:
    """VPSHUFB: a look-up within each 16 bytes; an index with its highest bit set gives 0."""
    count = result.count
    found = result([0] * count)
    for place in range(16):
        here = b.shuffle_vector(table, table, lanes(table, [(i & ~15) + place for i in range(count)]))
        found = b.select(b.icmp_unsigned("==", index, result([place] * count)), here, found)
    return found


def tile_memory(b: Any) -> Any:
    """The tiles [8][16][64 bytes], then the configuration: one state, so one thread only."""
    module, kind = b.module, ir.ArrayType(ir.IntType(8), 8 * 1024 + 64)
    found = module.globals.get("pretended.tiles")
    if found is None:
        found = ir.GlobalVariable(module, kind, "pretended.tiles")
        found.initializer, found.linkage = kind(None), "internal"
    return b.ptrtoint(found, ir.IntType(64))


def size_of(b: Any, tile: Any, first: int, size: int) -> Any:
    """A tile's number of rows or bytes of a row, from the configuration."""
    i64 = ir.IntType(64)
    place = b.add(tile_memory(b), b.add(i64(8 * 1024 + first), b.mul(b.zext(tile, i64), i64(size))))
    kind = ir.IntType(8 * size)
    return b.zext(b.load(b.inttoptr(place, ir.PointerType(kind)), typ=kind), i64)


def rows_of(b: Any, tile: Any) -> Any:
    return size_of(b, tile, 48, 1)


def width_of(b: Any, tile: Any) -> Any:
    return size_of(b, tile, 16, 2)


def place_of(b: Any, tile: Any, row: Any, byte: Any) -> Any:
    i64 = ir.IntType(64)
    offset = b.add(b.mul(b.zext(tile, i64), i64(1024)), b.add(b.mul(row, i64(64)), byte))
    return b.add(tile_memory(b), offset)


BYTE = ir.IntType(8)


def byte_at(b: Any, address: Any, kind: Any = BYTE) -> Any:
    return b.load(b.inttoptr(address, ir.PointerType(kind)), typ=kind)


def put(b: Any, address: Any, value: Any) -> None:
    b.store(value, b.inttoptr(address, ir.PointerType(value.type)))


def ldtilecfg(b: Any, result: Any, source: Any) -> None:
    i64 = ir.IntType(64)
    with cgutils.for_range(b, i64(64)) as loop:
        value = byte_at(b, b.add(b.ptrtoint(source, i64), loop.index))
        put(b, b.add(tile_memory(b), b.add(i64(8 * 1024), loop.index)), value)


def tilezero(b: Any, result: Any, tile: Any) -> None:
    i64 = ir.IntType(64)
    with cgutils.for_range(b, i64(1024)) as loop:
        put(b, place_of(b, tile, i64(0), loop.index), ir.IntType(8)(0))


def moved(b: Any, tile: Any, memory: Any, stride: Any, loads: bool) -> None:
    i64 = ir.IntType(64)
    with cgutils.for_range(b, rows_of(b, tile)) as row, cgutils.for_range(b, width_of(b, tile)) as byte:
        outside = b.add(b.ptrtoint(memory, i64), b.add(b.mul(row.index, stride), byte.index))
        inside = place_of(b, tile, row.index, byte.index)
        put(b, inside if loads else outside, byte_at(b, outside if loads else inside))


def tileload(b: Any, result: Any, tile: Any, memory: Any, stride: Any) -> None:
    moved(b, tile, memory, stride, loads=True)


def tilestore(b: Any, result: Any, tile: Any, memory: Any, stride: Any) -> None:
    moved(b, tile, memory, stride, loads=False)


def tdpbsud(b: Any, result: Any, total: Any, left: Any, right: Any) -> None:
    """TDPBSUD: C[m][n] += sum over k, i of signed A[m][4k + i] * unsigned B[k][4n + i]."""
    i64, i32 = ir.IntType(64), ir.IntType(32)
    four = i64(4)
    with cgutils.for_range(b, rows_of(b, total)) as m, cgutils.for_range(b, b.udiv(width_of(b, total), four)) as n:
        place = place_of(b, total, m.index, b.mul(n.index, four))
        with cgutils.for_range(b, width_of(b, left)) as k:
            a = byte_at(b, place_of(b, left, m.index, k.index))
            column = b.add(b.mul(n.index, four), b.urem(k.index, four))
            c = byte_at(b, place_of(b, right, b.udiv(k.index, four), column))
            product = b.mul(b.sext(a, i32), b.zext(c, i32))
            put(b, place, b.add(byte_at(b, place, i32), product))


MEANINGS = {
    "ldtilecfg": ldtilecfg,
    "tilerelease": lambda b, result: None,
    "tilezero": tilezero,
    "tileloadd64": tileload,
    "tilestored64": tilestore,
    "tdpbsud": tdpbsud,
    "vpdpbusd": dpbusd,
    "avx512.pmaddubs.w": maddubs,
    "avx512.pmaddw.d": maddwd,
    "avx512.pshuf.b": shuffled,
}
