"""Drafters' weights in int8: products with the rounded weights, the same bits in any call, and who gets them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.errors import ConfigError
from outrider.ops.cpu import CpuOps
from outrider.ops.torch import TorchOps

REFERENCE = TorchOps(torch.float64)
SIZES = st.integers(1, 90)
SEEDS = st.integers(0, 2**31)
EPS = 1e-5


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def rounded(weight_OF: Tensor) -> Tensor:
    """To 127 steps of each row's largest number."""
    steps_O1 = weight_OF.float().abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight_OF.float() / steps_O1).round().double() * steps_O1.double()


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, rows=SIZES, features=SIZES, outputs=SIZES, bias=st.booleans(), norm=st.booleans())
def test_products_are_those_of_the_rounded_weights(
    seed: int, rows: int, features: int, outputs: int, bias: bool, norm: bool
) -> None:
    ops = CpuOps(torch.bfloat16)
    packer, x = ops.narrow(), randn(seed, rows, features)
    weight, up = (randn(seed + n, outputs, features) / features**0.5 for n in (1, 2))
    bias_O, norm_F = randn(seed + 3, outputs) if bias else None, randn(seed + 4, features) if norm else None
    wide_norm = None if norm_F is None else norm_F.double()
    packed, reference = packer.pack(weight, bias_O), REFERENCE.pack(rounded(weight), bias_O)
    assert packed.data.dtype == torch.int8
    torch.testing.assert_close(
        ops.norm_project(x, norm_F, EPS, packed).double(),
        REFERENCE.norm_project(x.double(), wide_norm, EPS, reference),
        atol=5e-5,
        rtol=5e-5,
    )
    residual = randn(seed + 5, rows, outputs)
    expected = residual.double()
    ops.project_add(x, packed, residual)
    REFERENCE.project_add(x.double(), reference, expected)
    torch.testing.assert_close(residual.double(), expected, atol=5e-5, rtol=5e-5)
    gated = REFERENCE.pack_gate_up(rounded(weight), rounded(up))
    torch.testing.assert_close(
        ops.gate_up(x, norm_F, EPS, packer.pack_gate_up(weight, up)).double(),
        REFERENCE.gate_up(x.double(), wide_norm, EPS, gated),
        atol=1e-4,
        rtol=1e-4,
    )


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, rows=SIZES, features=SIZES, outputs=SIZES, threads=st.integers(1, 3))
def test_a_row_has_the_same_bits_in_any_call(seed: int, rows: int, features: int, outputs: int, threads: int) -> None:
    ops, alone = CpuOps(torch.bfloat16, threads), CpuOps(torch.bfloat16, 1)
    packed = ops.narrow().pack(randn(seed, outputs, features))
    x = randn(seed + 1, rows, features)
    together = ops.norm_project(x, None, EPS, packed)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(together[row : row + 1], alone.norm_project(x[row : row + 1].clone(), None, EPS, packed))


def test_unpacking_gives_the_rounded_weights_and_they_take_a_byte_each() -> None:
    ops, weight = CpuOps(torch.bfloat16), randn(0, 40, 24)
    packed = ops.narrow().pack(weight)
    assert torch.equal(ops.unpack(packed), rounded(weight).float().to(torch.bfloat16))
    assert packed.num_bytes < 0.7 * ops.pack(weight).num_bytes


def test_a_row_of_zeros_stays_zero() -> None:
    ops = CpuOps(torch.bfloat16)
    assert ops.norm_project(torch.ones(1, 4), None, EPS, ops.narrow().pack(torch.zeros(3, 4))).tolist() == [[0.0] * 3]


def test_only_bf16_targets_have_narrower_drafters(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = CpuOps(torch.float32)
    assert exact.narrow() is exact
    assert REFERENCE.narrow() is REFERENCE
    monkeypatch.setenv("OUTRIDER_DRAFT_WEIGHTS", "target")
    assert CpuOps(torch.bfloat16).narrow().pack(torch.eye(2)).data.dtype == torch.bfloat16
    monkeypatch.setenv("OUTRIDER_DRAFT_WEIGHTS", "int4")
    with pytest.raises(ConfigError, match="'int4' must be int8 or target"):
        CpuOps(torch.bfloat16).narrow()
