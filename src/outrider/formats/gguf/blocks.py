"""Decoding of quantised GGUF blocks into integer codes, scales and minima, without rounding.

A row of a quantised tensor is a sequence of blocks. Blocks of 32 features hold an fp16 scale `d`, perhaps an fp16
minimum `m`, and the codes `q`. Superblocks of 256 features hold fp16 numbers `d` and `dmin`, and for each group of 16
or 32 features a small integer scale `s` and perhaps a minimum `t`:

    Q4_0, Q5_0, Q8_0    d * (q - offset)              Q3_K, Q6_K    d * s * (q - offset)
    Q4_1, Q5_1          d * q + m                     Q2_K, Q4_K, Q5_K    d * s * q - dmin * t
    IQ4_NL              d * table[q]                  IQ4_XS        d * s * table[q]
    MXFP4               2 ** (e - 128) * table[q]

Codes lie in planes: the lowest bits of 16 to 64 bytes belong to as many consecutive features, the next bits to the
features after them. Layouts: `ggml-common.h` of llama.cpp.

Example: `decode("Q4_0", data_OB).codes_OF[0, 16]` is the high half of byte 2 of the first row, after `d` (bytes 0, 1).

Shapes: O rows, B bytes of a row, N blocks of a row, F features, G groups, S superblocks, J bytes of a plane.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from outrider.kernels.cpu.quant_layout import TABLES
from outrider.ops.quantised import SUPER, QuantFormat, QuantRows

__all__ = ["BLOCK_TYPES", "BlockType", "decode"]

Blocks = NDArray[np.void]
Bytes = NDArray[np.uint8]
LEGACY_GROUP: Final = 32
IQ4_TABLE, E2M1_TABLE = TABLES
E8M0_NAN: Final = 255


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """A quantised tensor type of GGUF.

    format    the format of its rows
    layout    the fields of one block, in the order of the file
    decode    function from blocks [O, N] to rows
    """

    format: QuantFormat
    layout: np.dtype[np.void]
    decode: Callable[[Blocks], QuantRows]

    @property
    def features(self) -> int:
        """Number of features in one block."""
        return SUPER if self.format.scales == "super" else LEGACY_GROUP

    @property
    def num_bytes(self) -> int:
        """Bytes of one block."""
        return self.layout.itemsize


def decode(kind: str, data_OB: Bytes) -> QuantRows:
    """Return the rows stored in these bytes; `kind` is a key of `BLOCK_TYPES`, B a multiple of its block's bytes.

    Scales are returned as they are stored, also those that are not finite.
    """
    block = BLOCK_TYPES[kind]
    return block.decode(np.ascontiguousarray(data_OB).view(block.layout))


# --- blocks of 32 ---


def _decode_4(blocks_ON: Blocks) -> QuantRows:
    return _rows(_planes(blocks_ON["qs"], 4), blocks_ON["d"], minima=_field(blocks_ON, "m"))


def _decode_5(blocks_ON: Blocks) -> QuantRows:
    fifth_ONF = np.unpackbits(blocks_ON["qh"], axis=-1, bitorder="little")
    # times 16 moves a bit up as a shift does, and numpy multiplies bytes ten times as fast
    low_ONF = _planes(blocks_ON["qs"], 4).reshape(fifth_ONF.shape)
    return _rows(low_ONF | fifth_ONF * np.uint8(16), blocks_ON["d"], minima=_field(blocks_ON, "m"))


def _decode_8(blocks_ON: Blocks) -> QuantRows:
    # an int8 plus 128 is its byte with the top bit flipped
    return _rows(blocks_ON["qs"] ^ np.uint8(128), blocks_ON["d"])


def _decode_mxfp4(blocks_ON: Blocks) -> QuantRows:
    exponents_ON = blocks_ON["e"].astype(np.int32)
    # half the power of two of E8M0, because the table's numbers are doubled; the smallest are subnormal
    scales_ON = np.ldexp(np.float32(1), exponents_ON - 128)
    scales_ON[exponents_ON == E8M0_NAN] = np.nan
    return _rows(_planes(blocks_ON["qs"], 4), scales_ON)


# --- superblocks of 256 ---


def _decode_q2_k(blocks_ON: Blocks) -> QuantRows:
    codes = _planes(blocks_ON["qs"].reshape(*blocks_ON.shape, 2, 32), 2)
    scales, minima = blocks_ON["scales"] & 15, blocks_ON["scales"] >> 4
    return _rows(codes, scales.astype(np.int8), blocks_ON["d"], minima, blocks_ON["dmin"])


def _decode_q3_k(blocks_ON: Blocks) -> QuantRows:
    low = _planes(blocks_ON["qs"].reshape(*blocks_ON.shape, 2, 32), 2)
    high = _planes(blocks_ON["hmask"], 1).reshape(low.shape)
    packed = blocks_ON["scales"]
    # sixteen scales of 6 bits: low halves in 8 bytes, then the high pairs of bits in 4
    low_16 = _planes(packed[..., :8], 4).reshape(*blocks_ON.shape, 16)
    high_16 = _planes(packed[..., 8:], 2).reshape(*blocks_ON.shape, 16)
    scales = (low_16 | high_16 << 4).astype(np.int8) - np.int8(32)
    return _rows(low | high * np.uint8(4), scales, blocks_ON["d"])


def _decode_q45_k(blocks_ON: Blocks) -> QuantRows:
    codes = _planes(blocks_ON["qs"].reshape(*blocks_ON.shape, 4, 32), 4)
    fifth = _field(blocks_ON, "qh")
    if fifth is not None:
        codes |= _planes(fifth, 1).reshape(codes.shape) * np.uint8(16)
    first, second, third = (blocks_ON["scales"][..., start : start + 4] for start in (0, 4, 8))
    # eight pairs of 6 bits: four whole ones, then four in halves of `third` below the free top bits of the others
    scales = np.concatenate([first & 63, (third & 15) | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return _rows(codes, scales.astype(np.int8), blocks_ON["d"], minima, blocks_ON["dmin"])


def _decode_q6_k(blocks_ON: Blocks) -> QuantRows:
    low = _planes(blocks_ON["ql"].reshape(*blocks_ON.shape, 2, 64), 4)
    high = _planes(blocks_ON["qh"].reshape(*blocks_ON.shape, 2, 32), 2).reshape(low.shape)
    return _rows(low | high * np.uint8(16), blocks_ON["scales"], blocks_ON["d"])


def _decode_iq4_xs(blocks_ON: Blocks) -> QuantRows:
    codes = _planes(blocks_ON["qs"].reshape(*blocks_ON.shape, 8, 16), 4)
    # scale b: half a byte of scales_l, and two bits of scales_h, both from the lowest bits up
    low = _planes(blocks_ON["scales_l"][..., None], 4).reshape(*blocks_ON.shape, 8)
    high = _planes(blocks_ON["scales_h"][..., None], 2).reshape(*blocks_ON.shape, 8)
    return _rows(codes, (low | high << 4).astype(np.int8) - np.int8(32), blocks_ON["d"])


# --- shared ---


def _planes(packed: Bytes, bits: int) -> Bytes:
    """Return the fields of `bits` bits of [..., J] bytes as [..., 8 / bits, J], the lowest bits first."""
    num_bytes, num_planes = packed.shape[-1], 8 // bits
    # eight bytes at once where possible: twice as fast; bits that cross into the next byte are masked away
    word: Any = np.uint64 if num_bytes % 8 == 0 else np.uint8
    words = np.ascontiguousarray(packed).view(word)
    mask = np.frombuffer(bytes([2**bits - 1]) * 8, word)[0]
    planes = np.empty((*words.shape[:-1], num_planes, words.shape[-1]), word)
    for plane in range(num_planes):
        for place in range(words.shape[-1]):
            shifted = words[..., place] >> word(plane * bits)
            np.bitwise_and(shifted, mask, out=planes[..., plane, place])
    joined: Bytes = planes.view(np.uint8)
    return joined


def _field(blocks_ON: Blocks, name: str) -> NDArray[Any] | None:
    return blocks_ON[name] if name in (blocks_ON.dtype.names or ()) else None


def _rows(
    codes: Bytes,
    scales: NDArray[Any],
    supers_OS: NDArray[Any] | None = None,
    minima: NDArray[Any] | None = None,
    super_minima_OS: NDArray[Any] | None = None,
) -> QuantRows:
    """Join the blocks of each row. K-quants subtract their minima, so the sign goes to `super_minima_OS`."""
    return QuantRows(
        codes_OF=_joined(codes),
        scales_OG=_joined(scales),
        minima_OG=None if minima is None else _joined(minima),
        supers_OS=None if supers_OS is None else _joined(supers_OS),
        super_minima_OS=None if super_minima_OS is None else _joined(-super_minima_OS),
    )


def _joined(numbers: NDArray[Any]) -> NDArray[Any]:
    # not -1: there may be no rows
    return np.ascontiguousarray(numbers).reshape(len(numbers), math.prod(numbers.shape[1:]))


FP16: Final = "<f2"


def _layout(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[np.void]:
    return np.dtype(list(fields))


BLOCK_TYPES: Final[Mapping[str, BlockType]] = {
    block.format.name: block
    for block in (
        BlockType(
            format=QuantFormat(name="Q4_0", bits=4, offset=8),
            layout=_layout(("d", FP16), ("qs", "u1", 16)),
            decode=_decode_4,
        ),
        BlockType(
            format=QuantFormat(name="Q4_1", bits=4, has_minima=True),
            layout=_layout(("d", FP16), ("m", FP16), ("qs", "u1", 16)),
            decode=_decode_4,
        ),
        BlockType(
            format=QuantFormat(name="Q5_0", bits=5, offset=16),
            layout=_layout(("d", FP16), ("qh", "u1", 4), ("qs", "u1", 16)),
            decode=_decode_5,
        ),
        BlockType(
            format=QuantFormat(name="Q5_1", bits=5, has_minima=True),
            layout=_layout(("d", FP16), ("m", FP16), ("qh", "u1", 4), ("qs", "u1", 16)),
            decode=_decode_5,
        ),
        BlockType(
            format=QuantFormat(name="Q8_0", bits=8, offset=128),
            layout=_layout(("d", FP16), ("qs", "u1", 32)),
            decode=_decode_8,
        ),
        BlockType(
            format=QuantFormat(name="IQ4_NL", bits=4, table=IQ4_TABLE),
            layout=_layout(("d", FP16), ("qs", "u1", 16)),
            decode=_decode_4,
        ),
        BlockType(
            format=QuantFormat(name="MXFP4", bits=4, table=E2M1_TABLE, scales="f32"),
            layout=_layout(("e", "u1"), ("qs", "u1", 16)),
            decode=_decode_mxfp4,
        ),
        BlockType(
            format=QuantFormat(name="Q2_K", bits=4, group=16, scales="super", has_minima=True),
            layout=_layout(("scales", "u1", 16), ("qs", "u1", 64), ("d", FP16), ("dmin", FP16)),
            decode=_decode_q2_k,
        ),
        BlockType(
            format=QuantFormat(name="Q3_K", bits=4, offset=4, group=16, scales="super"),
            layout=_layout(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", FP16)),
            decode=_decode_q3_k,
        ),
        BlockType(
            format=QuantFormat(name="Q4_K", bits=4, scales="super", has_minima=True),
            layout=_layout(("d", FP16), ("dmin", FP16), ("scales", "u1", 12), ("qs", "u1", 128)),
            decode=_decode_q45_k,
        ),
        BlockType(
            format=QuantFormat(name="Q5_K", bits=5, scales="super", has_minima=True),
            layout=_layout(("d", FP16), ("dmin", FP16), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
            decode=_decode_q45_k,
        ),
        BlockType(
            format=QuantFormat(name="Q6_K", bits=6, offset=32, group=16, scales="super"),
            layout=_layout(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", FP16)),
            decode=_decode_q6_k,
        ),
        BlockType(
            format=QuantFormat(name="IQ4_XS", bits=4, table=IQ4_TABLE, scales="super"),
            layout=_layout(("d", FP16), ("scales_h", "u1", 2), ("scales_l", "u1", 4), ("qs", "u1", 128)),
            decode=_decode_iq4_xs,
        ),
    )
}
