"""Decoded blocks have exactly the values that gguf-py's dequantisation gives."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from outrider.formats.gguf.blocks import BLOCK_TYPES, decode
from outrider.ops.quantised import SUPER, dequantised

KINDS = sorted(BLOCK_TYPES)
FP16_EXPONENT = 0x7C


def random_blocks(kind: str, num_rows: int, num_blocks: int, seed: int) -> NDArray[np.uint8]:
    """Random bytes, with every scale finite."""
    block = BLOCK_TYPES[kind]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (num_rows, num_blocks, block.num_bytes), np.uint8)
    for name, (dtype, place, *_) in (block.layout.fields or {}).items():
        if dtype == np.float16:
            high = data[..., place + 1]  # sign, exponent and two bits of the fraction
            high[(high & FP16_EXPONENT) == FP16_EXPONENT] &= 0x83
        elif name == "e":
            data[..., place] %= 253  # twelve times a larger power of two is infinite in fp32
    return data.reshape(num_rows, -1)


@pytest.mark.parametrize("kind", KINDS)
@given(num_rows=st.integers(1, 5), num_blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_values_are_those_of_gguf_py_bit_for_bit(kind: str, num_rows: int, num_blocks: int, seed: int) -> None:
    data = random_blocks(kind, num_rows, num_blocks, seed)
    expected = dequantize(data, gguf.GGMLQuantizationType[kind])
    found = dequantised(BLOCK_TYPES[kind].format, decode(kind, data))
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_shapes_dtypes_and_ranges_of_their_format(kind: str) -> None:
    block = BLOCK_TYPES[kind]
    rows = decode(kind, random_blocks(kind, 64, 3, 7))
    features = 3 * block.features
    assert rows.codes_OF.shape == (64, features)
    assert rows.codes_OF.dtype == np.uint8
    used = {"Q2_K": 4, "Q3_K": 8}.get(kind, 2**block.format.bits)
    assert set(np.unique(rows.codes_OF)) == set(range(used))
    small = block.format.scales == "super"
    number = {"f16": np.float16, "f32": np.float32, "super": np.int8}[block.format.scales]
    assert (rows.scales_OG.shape, rows.scales_OG.dtype) == ((64, features // block.format.group), number)
    assert (rows.minima_OG is not None) == block.format.has_minima
    if rows.minima_OG is not None:
        assert (rows.minima_OG.shape, rows.minima_OG.dtype) == (rows.scales_OG.shape, np.uint8 if small else number)
    for factors, present in ((rows.supers_OS, small), (rows.super_minima_OS, small and block.format.has_minima)):
        assert (factors is not None) == present
        assert factors is None or (factors.shape, factors.dtype) == ((64, features // SUPER), np.float16)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_have_the_sizes_of_the_format(kind: str) -> None:
    block = BLOCK_TYPES[kind]
    assert (block.features, block.num_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def test_the_documented_byte_is_feature_16() -> None:
    data = np.zeros((1, 18), np.uint8)
    data[0, 2] = 0x5B
    codes = decode("Q4_0", data).codes_OF[0]
    assert (codes[0], codes[16]) == (0xB, 0x5)


def test_every_power_of_two_of_mxfp4_is_exact_and_its_nan_is_kept() -> None:
    data = np.zeros((256, 17), np.uint8)
    data[:, 0] = np.arange(256)
    scales = decode("MXFP4", data).scales_OG[:, 0]
    assert [float(scale) for scale in scales[:255]] == [2.0 ** (power - 128) for power in range(255)]
    assert np.isnan(scales[255])
