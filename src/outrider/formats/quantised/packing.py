"""Codes of 4 or 8 bits in bytes and in 32-bit words, as files hold them: low bits first.

Example: `pairs(np.array([[0x21, 0x43]], np.uint8))` is `[[1, 2, 3, 4]]`.

Shapes: R rows, W words or bytes of a row.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Bits", "bytes_of", "pack_pairs", "pairs", "word_codes"]

Bits = Literal[4, 8]


def pairs(packed_RW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the two codes of each byte, low one first, [R, 2 W]."""
    return np.stack([packed_RW & 15, packed_RW >> 4], axis=-1).reshape(*packed_RW.shape[:-1], -1)


def pack_pairs(codes_RC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the codes 2j and 2j + 1 in the low and high bits of byte j, [R, C / 2]."""
    return codes_RC[..., ::2] | codes_RC[..., 1::2] * np.uint8(16)


def word_codes(words_RW: Tensor, bits: Bits) -> NDArray[np.uint8]:
    """Return the codes of 32-bit words, low ones first, [R, W * 32 / bits]."""
    return bytes_of(words_RW) if bits == 8 else pairs(bytes_of(words_RW))


def bytes_of(words_RW: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of 32-bit words, lowest first, [R, 4 W]."""
    # a clone has the strides of its shape, which a view needs, even where an axis has one entry
    words: NDArray[np.int32] = words_RW.clone(memory_format=torch.contiguous_format).numpy()
    return words.astype("<i4", copy=False).view(np.uint8)
