"""Vectors in compiled kernels: the emission of a kernel's inner loop, and pointers for its Python part.

A kernel is Python for its loops over tiles and emitted LLVM for its inner loop, where every accumulator must stay in a
register and every rounding must be known. Two rules make results independent of tiling: products are accumulated with
one fused multiply-add per element in ascending order, and lanes are summed by one fixed tree. The width of a vector is
the host's (16 lanes with AVX-512, otherwise 8, which LLVM splits where registers are narrower).

exp(x) = 2^n * p(r) with n = round(x / ln 2), r = x - n * ln 2 in two steps, and p the degree-7 Taylor polynomial; below
-87 the result is exactly 0, above 88 it is that of 88. Measured against fp64 the relative error stays below 2e-7.

A bf16 number is the upper half of an fp32 number, so widening is a shift: 0x3FC0 -> 0x3FC00000 = 1.5.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from outrider.kernels.compiled import callback
from outrider.kernels.cpu.isa import WIDE_SETS, chosen

__all__ = [
    "SUMS",
    "TILE_ROWS",
    "WIDE",
    "WIDTH",
    "Emitter",
    "emitted",
    "f32",
    "f64",
    "i32",
    "i64",
    "inlined",
    "interleaved",
    "kernel",
    "lowered",
    "u8",
    "u16",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Value = Any  # an LLVM value

WIDE = chosen() in WIDE_SETS
WIDTH = 16 if WIDE else 8
SUMS = 16
"""Lanes of a sum over a whole vector, on every instruction set, so that its bits are the same."""
TILE_ROWS = 12 if WIDE else 6  # rows x 2 vectors of accumulators, and their operands, fit the registers

X86 = llvm.get_process_triple().split("-")[0] in ("x86_64", "i686", "i386")


class _Bf16Type(ir.Type):  # type: ignore[misc]
    """LLVM's type of bf16 numbers, which the IR library lacks."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bf16Type)

    def __hash__(self) -> int:
        return hash(_Bf16Type)


BF16 = _Bf16Type()
F16 = ir.HalfType()
F32 = ir.FloatType()
I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)


def inlined(function: Function) -> Function:
    """Compile a function that kernels call."""
    return cast(Function, njit(inline="always", error_model="numpy")(function))


def kernel(function: Function) -> Any:
    """Compile a kernel `void (int64 block, int64 lane)` that any native thread can run; `.address` is its entry."""
    decorate = callback(types.void, types.int64, types.int64, variant=f"-{chosen()}", error_model="numpy")
    return decorate(function)


def emitted(function: Callable[..., Any]) -> Any:
    """Declare a function of kernels whose body is emitted; literal arguments (tile shapes) keep their value."""
    return intrinsic(prefer_literal=True)(function)


def lowered(emit: Callable[..., Value], result: Any, *arguments: Any) -> tuple[Any, Any]:
    """Return the signature of a function marked `emitted`, and its code, emitted by `emit(emitter, *values)`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        constants = [
            kind.literal_value if isinstance(kind, types.IntegerLiteral) else value
            for kind, value in zip(signature.args, values, strict=True)
        ]
        produced = emit(Emitter(builder), *constants)
        return context.get_dummy_value() if result is types.void else produced

    wide = [kind if isinstance(kind, types.IntegerLiteral | types.Float) else types.int64 for kind in arguments]
    return result(*wide), generate


class Emitter:
    """Emits the instructions that kernels consist of. Addresses are int64 values in bytes; vectors are fp32."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def at(self, base: Value, index: Value | int, size: Value | int) -> Value:
        """Return base + index * size."""
        if isinstance(index, int) and isinstance(size, int):
            return self.builder.add(base, I64(index * size)) if index else base
        index, size = (I64(v) if isinstance(v, int) else v for v in (index, size))
        return self.builder.add(base, self.builder.mul(index, size))

    def load(self, address: Value, kind: Any) -> Value:
        return self.builder.load(self.builder.inttoptr(address, ir.PointerType(kind)), align=_alignment(kind))

    def store(self, address: Value, value: Value) -> None:
        pointer = self.builder.inttoptr(address, ir.PointerType(value.type))
        self.builder.store(value, pointer, align=_alignment(value.type))

    def load_floats(self, address: Value, lanes: int, is_bf16: int) -> Value:
        """Load `lanes` consecutive numbers, bf16 if `is_bf16`, as fp32."""
        if not is_bf16:
            return self.load(address, vector(F32, lanes))
        wide = self.builder.zext(self.load(address, vector(I16, lanes)), vector(I32, lanes))
        return self.builder.bitcast(self.builder.shl(wide, splat(self, I32(16), lanes)), vector(F32, lanes))

    def load_pair(self, address: Value, kind: int) -> tuple[Value, Value]:
        """Load one row of a weight block as two vectors.

        The kind is fp32 (0), or bf16 (1), interleaved as low and high halves.
        """
        if kind == 0:
            wide = vector(F32, WIDTH)
            return self.load(address, wide), self.load(self.at(address, WIDTH, 4), wide)
        low, high = self.numbers(self.load(address, vector(I32, WIDTH)), 1)
        return low, high

    def numbers(self, lanes: Value, is_bf16: int) -> list[Value]:
        """Return the vectors in `WIDTH` 32-bit lanes: one of fp32, or those of the low and the high bf16."""
        if not is_bf16:
            return [self.builder.bitcast(lanes, vector(F32, WIDTH))]
        low = self.builder.shl(lanes, splat(self, I32(16), WIDTH))
        high = self.builder.and_(lanes, self.high_halves)
        return [self.builder.bitcast(v, vector(F32, WIDTH)) for v in (low, high)]

    @cached_property
    def high_halves(self) -> Value:
        """A mask hidden from LLVM, which would turn the `and` into a blend that competes with the FMA units."""
        with self.builder.goto_entry_block():
            place = cgutils.alloca_once_value(self.builder, I32(0xFFFF0000))
            return splat(self, self.builder.load_atomic(place, "monotonic", align=4), WIDTH)

    def is_set(self, number: Value) -> Value:
        """Return 1 if a number is not 0, else 0."""
        return self.builder.zext(self.builder.icmp_signed("!=", number, I64(0)), I64)

    def intrinsic(self, name: str, result: Any, *arguments: Value) -> Value:
        """Call an instruction of the processor by LLVM's name for it."""
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, arguments)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        kind = a.type
        name = f"llvm.fma.v{kind.count}f32" if isinstance(kind, ir.VectorType) else "llvm.fma.f32"
        return self.intrinsic(name, kind, a, b, c)

    def dot_pairs(self, total: Value, a: Value, b: Value) -> Value:
        """Return total + the products of both bf16 numbers in each 32-bit lane of a and b (`vdpbf16ps`)."""
        pairs = [self.builder.bitcast(some, vector(BF16, 2 * total.type.count)) for some in (a, b)]
        return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", total.type, total, *pairs)

    def prefetch(self, address: Value, level: int) -> None:
        """Prefetch a cache line into the first or second level; any address is allowed."""
        pointer = self.builder.inttoptr(address, ir.PointerType(ir.IntType(8)))
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(4 - level), I32(1))

    def pause(self) -> None:
        """Yield the core's resources for a moment, where the processor has an instruction for it."""
        if X86:
            self.intrinsic("llvm.x86.sse2.pause", ir.VoidType())

    def variable(self, initial: Value) -> Value:
        """Allocate a slot that LLVM turns into a register; `get` and `set` it."""
        pointer = cgutils.alloca_once(self.builder, initial.type)
        self.builder.store(initial, pointer)
        return pointer

    def get(self, pointer: Value) -> Value:
        return self.builder.load(pointer)

    def set(self, pointer: Value, value: Value) -> None:
        self.builder.store(value, pointer)

    @contextmanager
    def cases(self, number: Value, codes: Sequence[int]) -> Iterator[Iterator[int]]:
        """Open a block of code for each value of a number: code emitted while a value is yielded belongs to it."""
        done = self.builder.append_basic_block("done")
        blocks = [self.builder.append_basic_block(f"case.{code}") for code in codes]
        switch = self.builder.switch(number, blocks[0])

        def each() -> Iterator[int]:
            for code, block in zip(codes, blocks, strict=True):
                if block is not blocks[0]:
                    switch.add_case(I64(code), block)
                self.builder.position_at_end(block)
                yield code
                self.builder.branch(done)

        yield each()
        self.builder.position_at_end(done)

    @contextmanager
    def loop(self, start: Value, stop: Value, step: int = 1) -> Iterator[Value]:
        with cgutils.for_range_slice(self.builder, start, stop, I64(step)) as (index, _):
            yield index

    def whole(self, count: Value, step: int) -> Value:
        """Return the largest multiple of `step`, a power of two, that is at most `count`."""
        return self.builder.and_(count, I64(-step))

    def exp(self, x: Value) -> Value:
        """Return exp of a vector, as the module docstring describes."""
        b, lanes = self.builder, x.type.count

        def constant(number: float) -> Value:
            return splat(self, F32(number), lanes)

        magic = constant(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
        small = b.fcmp_ordered("<", x, constant(-87.0))
        bounded = b.select(small, constant(-87.0), x)
        bounded = b.select(b.fcmp_ordered(">", bounded, constant(88.0)), constant(88.0), bounded)
        shifted = self.fma(bounded, constant(1.0 / math.log(2.0)), magic)
        n = b.fsub(shifted, magic)
        r = self.fma(n, constant(-0.693359375), bounded)
        r = self.fma(n, constant(2.12194440e-4), r)
        series = constant(1.0 / math.factorial(7))
        for power in range(6, -1, -1):
            series = self.fma(series, r, constant(1.0 / math.factorial(power)))
        exponent = b.shl(
            b.add(b.fptosi(n, vector(I32, lanes)), splat(self, I32(127), lanes)), splat(self, I32(23), lanes)
        )
        result = b.fmul(series, b.bitcast(exponent, series.type))
        return b.select(small, constant(0.0), result)


def vector(kind: Any, lanes: int) -> Any:
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def splat(emitter: Emitter, value: Value, lanes: int) -> Value:
    """Return a vector with all lanes equal to one number."""
    if lanes == 1:
        return value
    kind = ir.VectorType(value.type, lanes)
    if isinstance(value, ir.Constant):
        return kind([value.constant] * lanes)
    first = emitter.builder.insert_element(kind(ir.Undefined), value, I32(0))
    return emitter.builder.shuffle_vector(first, kind(ir.Undefined), ir.VectorType(I32, lanes)([0] * lanes))


def interleaved(emitter: Emitter, vectors: list[Value]) -> list[Value]:
    """Interleave vectors: the first number of each, then the second of each, and so on."""
    if len(vectors) == 1:
        return vectors
    pairs = zip(interleaved(emitter, vectors[::2]), interleaved(emitter, vectors[1::2]), strict=True)
    lanes = ir.VectorType(I32, WIDTH)
    orders = [lanes([is_bf16 + i // 2 + i % 2 * WIDTH for i in range(WIDTH)]) for is_bf16 in (0, WIDTH // 2)]
    return [emitter.builder.shuffle_vector(a, b, order) for a, b in pairs for order in orders]


def folded(emitter: Emitter, value: Value, join: Callable[[Value, Value], Value]) -> Value:
    """Join the lanes of one vector by a fixed tree: lanes half the vector apart first."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        index = ir.VectorType(I32, lanes)
        lower, upper = (
            emitter.builder.shuffle_vector(value, value, index([first + i for i in range(lanes)]))
            for first in (0, lanes)
        )
        value = join(lower, upper)
    return emitter.builder.extract_element(value, I32(0))


def _alignment(kind: Any) -> int:
    scalar = kind.element if isinstance(kind, ir.VectorType) else kind
    return {F32: 4, F16: 2}.get(scalar) or int(scalar.width) // 8


def _pointer(kind: Any) -> Any:
    def build(typing: Any, address: Any) -> Any:
        def emit(emitter: Emitter, value: Value) -> Value:
            return emitter.builder.inttoptr(value, ir.PointerType(LLVM_TYPES[kind]))

        return lowered(emit, types.CPointer(kind), address)

    return emitted(build)


LLVM_TYPES = {
    types.float32: F32,
    types.float64: ir.DoubleType(),
    types.int32: I32,
    types.int64: I64,
    types.uint8: ir.IntType(8),
    types.uint16: I16,
}
f32, f64, i32, i64, u8, u16 = (_pointer(kind) for kind in LLVM_TYPES)
