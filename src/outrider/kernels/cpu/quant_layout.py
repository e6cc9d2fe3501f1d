"""The layout of quantised weights in memory, and its code in one number.

Weights are packed in strips of `WIDTH` output columns, so that a vector's lane is a column. A strip is one stream:

    for each superblock of 256 features      only in layouts with super-scales
        supers        fp16 [WIDTH]           and the super-minima, if there are minima
        for each block of 32 features
            codes     [32 / 4][WIDTH][4]     four consecutive features of a column are one lane of 32 bits
            scales    [32 / group][WIDTH]    and the minima: fp16, fp32, or int8 and uint8

Codes of 8 bits are bytes. Shorter codes have their low 4 bits in nibbles: byte i of vector j holds byte i of the groups
of four j (low nibble) and j + 4. The fifth bits of all eight groups share one more vector, the fifth and sixth bits
two.

Example: Q4_1 with 8 lanes takes 128 bytes of nibbles, 16 of scales and 16 of minima for a strip's block.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = ["BLOCK", "PER_SUPER", "TABLES", "Layout"]

BLOCK: Final = 32
"""Features of a block: they share the scale of an activation."""
PER_SUPER: Final = 8
"""Blocks of a superblock."""
TABLES: Final = (
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12),
)
"""Values of 4-bit codes: those of IQ4_NL and IQ4_XS; 4-bit floats (2 exponent bits, 1 mantissa bit), doubled."""
SCALES: Final = ("f16", "f32", "super")
NUMBER_BYTES: Final = {"f16": 2, "f32": 4, "super": 1}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The packing of a matrix; fields as in `outrider.ops.quantised.QuantFormat`, but `table` is an index in TABLES."""

    bits: int
    offset: int = 0
    table: int | None = None
    group: int = BLOCK
    scales: str = "f16"
    has_minima: bool = False

    @property
    def code(self) -> int:
        """The layout as one number, a constant of compiled kernels."""
        number = self.bits | self.offset << 4 | (0 if self.table is None else self.table + 1) << 12
        return number | (self.group == 16) << 14 | SCALES.index(self.scales) << 15 | self.has_minima << 17

    @classmethod
    def of(cls, code: int) -> "Layout":
        """Return the layout with this code."""
        return cls(
            bits=code & 15,
            offset=code >> 4 & 255,
            table=(code >> 12 & 3) - 1 if code >> 12 & 3 else None,
            group=16 if code >> 14 & 1 else BLOCK,
            scales=SCALES[code >> 15 & 3],
            has_minima=bool(code >> 17 & 1),
        )

    @cached_property
    def groups(self) -> int:
        """Groups of a block."""
        return BLOCK // self.group

    @cached_property
    def reach(self) -> tuple[int, int]:
        """Bits and offset of the unsigned numbers that are multiplied: codes, or the table's values made unsigned."""
        if self.table is None:
            return self.bits, self.offset
        lowest, highest = min(TABLES[self.table]), max(TABLES[self.table])
        return max(4, (highest - lowest).bit_length()), -lowest

    @property
    def has_sums(self) -> bool:
        """True if products need the sums of activations, for an offset or for minima."""
        return self.has_minima or self.reach[1] != 0

    def code_bytes(self, lanes: int) -> int:
        """Return the bytes of a strip's codes of one block."""
        return BLOCK * lanes * self.bits // 8

    def scale_bytes(self, lanes: int) -> int:
        """Return the bytes of a strip's scales and minima of one block, supers excluded."""
        return self.groups * lanes * NUMBER_BYTES[self.scales] * (1 + self.has_minima)

    def super_bytes(self, lanes: int) -> int:
        """Return the bytes before the blocks of a superblock."""
        return 2 * lanes * (1 + self.has_minima) if self.scales == "super" else 0

    def block_bytes(self, lanes: int) -> int:
        """Return the bytes of a strip's block."""
        return self.code_bytes(lanes) + self.scale_bytes(lanes)

    def strip_bytes(self, lanes: int, num_blocks: int) -> int:
        """Return the bytes of a strip of `num_blocks` blocks, a multiple of 8 of them with super-scales."""
        supers = num_blocks // PER_SUPER * self.super_bytes(lanes)
        return num_blocks * self.block_bytes(lanes) + supers
