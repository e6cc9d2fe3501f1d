"""Sums of products by AMX: the matrix unit multiplies up to 16 rows by 16 columns of a block at once.

    tile 0    sums         int32 [rows][16]
    tile 1    activations  int8 [rows][group]
    tile 2    codes        uint8 [group / 4][16][4], as `quant_layout.py` orders them

The codes of a group are unpacked to memory first; the unit reads tiles only from there. Sums are exact, so they have
the same bits as those of `quant_dots.py`. Source: Intel's manual, chapter on AMX (`TDPBSUD`).

Example: a block of 32 features, 16 rows and 16 columns, 8,192 products, is one instruction.
"""

from collections.abc import Sequence

from llvmlite import ir

from outrider.kernels.cpu.vector import I8, I32, I64, Emitter, Value, vector

__all__ = ["MATRIX_ROWS", "Tiles"]

MATRIX_ROWS = 16
"""The most rows of a tile."""
LANES = 16
WIDTH_BYTES = 64
CONFIG_BYTES = 64
VOID = ir.VoidType()


class Tiles:
    """Emits the use of the matrix unit for a number of rows and the features of a group."""

    def __init__(self, emitter: Emitter, rows: int, group: int) -> None:
        self.emitter, self.rows, self.group = emitter, rows, group
        self.codes, self.sums = self._memory(group * LANES), self._memory(MATRIX_ROWS * WIDTH_BYTES)

    def open(self) -> None:
        """Configure the tiles, on the thread that uses them."""
        config = bytearray(CONFIG_BYTES)
        config[0] = 1  # the palette
        shapes = [(self.rows, WIDTH_BYTES), (self.rows, self.group), (self.group // 4, WIDTH_BYTES)]
        for tile, (rows, columns) in enumerate(shapes):
            config[16 + 2 * tile : 18 + 2 * tile] = columns.to_bytes(2, "little")
            config[48 + tile] = rows
        memory = self._memory(CONFIG_BYTES)
        for word in range(0, CONFIG_BYTES, 8):
            number = int.from_bytes(config[word : word + 8], "little")
            self.emitter.store(self.emitter.at(memory, word, 1), I64(number))
        self.emitter.intrinsic("llvm.x86.ldtilecfg", VOID, self._pointer(memory))

    def close(self) -> None:
        """Release the tiles, so that switching threads need not save them."""
        self.emitter.intrinsic("llvm.x86.tilerelease", VOID)

    def dots(self, codes: Sequence[Value], x: Value, stride: int) -> list[Value]:
        """Return the sums of each row; rows of activations are `stride` bytes apart."""
        emitter = self.emitter
        for number, code in enumerate(codes):
            emitter.store(emitter.at(self.codes, number * WIDTH_BYTES, 1), code)
        emitter.intrinsic("llvm.x86.tilezero", VOID, I8(0))
        emitter.intrinsic("llvm.x86.tileloadd64", VOID, I8(1), self._pointer(x), I64(stride))
        emitter.intrinsic("llvm.x86.tileloadd64", VOID, I8(2), self._pointer(self.codes), I64(WIDTH_BYTES))
        emitter.intrinsic("llvm.x86.tdpbsud", VOID, I8(0), I8(1), I8(2))
        emitter.intrinsic("llvm.x86.tilestored64", VOID, I8(0), self._pointer(self.sums), I64(WIDTH_BYTES))
        kind = vector(I32, LANES)
        return [emitter.load(emitter.at(self.sums, row * WIDTH_BYTES, 1), kind) for row in range(self.rows)]

    def _memory(self, num_bytes: int) -> Value:
        builder = self.emitter.builder
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(I8, num_bytes))
            memory.align = 64
        return builder.ptrtoint(memory, I64)

    def _pointer(self, address: Value) -> Value:
        return self.emitter.builder.inttoptr(address, ir.PointerType(I8))
