"""Widths of weights by kind, against the sizes of their blocks as the GGUF library has them."""

import gguf
import pytest

from outrider.errors import ConfigError
from outrider.formats.gguf.blocks import BLOCK_TYPES
from outrider.models.weight_kinds import BYTES_PER_WEIGHT, checked_kinds, is_quantised
from outrider.planning.models import model_spec
from outrider.planning.widths import stored_kinds, width_of


def test_bytes_are_those_of_the_files() -> None:
    for kind in (*BLOCK_TYPES, "F32", "F16", "BF16"):
        size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        assert BYTES_PER_WEIGHT[kind] == num_bytes / size
        assert is_quantised(kind) is (kind in BLOCK_TYPES)
    assert (BYTES_PER_WEIGHT["int8"], BYTES_PER_WEIGHT["int4"]) == (1 + 2 / 32, 0.5 + 2 / 32)
    assert is_quantised("int4")


def test_the_second_kind_is_that_of_the_output_head() -> None:
    spec = model_spec("qwen2.5-7b")
    head = 152064 * 3584 / 7_070_285_824
    width = width_of("Q4_K, Q6_K", spec)
    assert width.num_bytes == pytest.approx((1 - head) * 144 / 256 + head * 210 / 256)
    assert (width.kinds, width.is_integer) == ("Q4_K, Q6_K", True)
    assert width_of("int4", spec).num_bytes == pytest.approx((1 - head) * 18 / 32 + head * 34 / 32)
    assert (width_of("bf16", spec).num_bytes, width_of("bf16", spec).is_integer) == (2.0, False)


def test_kinds_that_are_unknown_are_named() -> None:
    assert checked_kinds("Q4_1,Q8_0") == ("Q4_1", "Q8_0")
    with pytest.raises(ConfigError, match="unknown kind of weights 'Q4-K'; did you mean 'Q4_K'"):
        checked_kinds("Q4-K")


def test_models_known_by_their_sizes_are_plain() -> None:
    assert stored_kinds("qwen2.5-7b") == "bf16"
    assert stored_kinds("smollm2-135m") == "Q4_1, Q8_0"
