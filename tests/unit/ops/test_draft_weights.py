"""Drafters' rounded weights: products with what was rounded, the same bits in any call, and who gets them."""

import os
from typing import Any
from unittest.mock import patch

import numpy as np
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
FEATURES = st.integers(1, 4).map(lambda blocks: 32 * blocks)
SEEDS = st.integers(0, 2**31)
BITS = st.sampled_from([8, 4])
EPS = 1e-5


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def eighth_bits(numbers_RF: Tensor) -> Tensor:
    """Activations as the integer kernels see them: 127 steps of the largest of each 32 numbers."""
    blocks = numbers_RF.double().unflatten(1, (-1, 32))
    steps = blocks.abs().amax(2, keepdim=True).clamp(min=1e-30) / 127
    return ((blocks / steps).round() * steps).flatten(1)


def normed(x_RF: Tensor, norm_F: Tensor | None) -> Tensor:
    wide = x_RF.double()
    return wide if norm_F is None else wide / (wide.square().mean(1, keepdim=True) + EPS).sqrt() * norm_F.double()


def packer_of(ops: CpuOps, bits: int) -> CpuOps:
    with patch.dict(os.environ, OUTRIDER_DRAFT_WEIGHTS=f"int{bits}"):
        return ops.narrow()


def close(found: Tensor, wanted: Tensor, x_RF: Tensor, weight_OF: Tensor) -> None:
    """Compare products; an activation at the edge of two codes may have gone to the other one."""
    step = x_RF.double().abs().amax() / 127
    edge = float(2 * step * weight_OF.double().abs().amax())
    torch.testing.assert_close(found.double(), wanted, atol=edge + 1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, rows=SIZES, features=FEATURES, outputs=SIZES, bias=st.booleans(), norm=st.booleans(), bits=BITS)
def test_products_are_those_of_the_rounded_weights(
    seed: int, rows: int, features: int, outputs: int, bias: bool, norm: bool, bits: int
) -> None:
    ops = CpuOps(torch.bfloat16)
    packer, x = packer_of(ops, bits), randn(seed, rows, features)
    weight, up = (randn(seed + n, outputs, features) / features**0.5 for n in (1, 2))
    bias_O, norm_F = randn(seed + 3, outputs) if bias else None, randn(seed + 4, features) if norm else None
    packed, exact = packer.pack(weight, bias_O), CpuOps(torch.float32)
    assert packed.layout.bits == bits
    held, input_RF = exact.unpack(packed).double(), normed(x, norm_F)
    product = eighth_bits(input_RF) @ held.T + (0 if bias_O is None else bias_O.double())
    close(ops.norm_project(x, norm_F, EPS, packed), product, input_RF, held)
    residual = randn(seed + 5, rows, outputs)
    expected = residual.double() + eighth_bits(x) @ held.T + (0 if bias_O is None else bias_O.double())
    ops.project_add(x, packed, residual)
    close(residual, expected, x, held)
    gate, other = (eighth_bits(x) @ exact.unpack(packer.pack(half)).double().T for half in (weight, up))
    found = ops.gate_up(x, None, EPS, packer.pack_gate_up(weight, up))
    torch.testing.assert_close(found.double(), torch.nn.functional.silu(gate) * other, atol=0.15, rtol=0.05)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, features=FEATURES, outputs=SIZES, bits=BITS)
def test_weights_are_off_by_what_their_bits_allow(seed: int, features: int, outputs: int, bits: int) -> None:
    weight = randn(seed, outputs, features)
    held = CpuOps(torch.float32).unpack(packer_of(CpuOps(torch.bfloat16), bits).pack(weight))
    largest, errors = weight.unflatten(1, (-1, 32)).abs().amax(2), (held - weight).unflatten(1, (-1, 32))
    if bits == 8:
        assert (errors.abs().amax(2) <= largest / 127 * 0.502).all()
    else:  # the plain rule, which ours may not exceed, has steps of an eighth, and is off by one step at the far end
        assert (errors.square().mean(2).sqrt() <= largest / 8).all()
        assert errors.square().mean() < 0.012 * weight.square().mean()


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, rows=SIZES, features=SIZES, outputs=SIZES, threads=st.integers(1, 3), bits=BITS)
def test_a_row_has_the_same_bits_in_any_call(
    seed: int, rows: int, features: int, outputs: int, threads: int, bits: int
) -> None:
    ops, alone = CpuOps(torch.bfloat16, threads), CpuOps(torch.bfloat16, 1)
    packed = packer_of(ops, bits).pack(randn(seed, outputs, features))
    x = randn(seed + 1, rows, features)
    together = ops.norm_project(x, None, EPS, packed)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(together[row : row + 1], alone.norm_project(x[row : row + 1].clone(), None, EPS, packed))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.55), (4, 0.3)])
def test_they_take_a_byte_or_half_a_byte_and_their_scales(bits: int, most: float) -> None:
    ops, weight = CpuOps(torch.bfloat16), randn(0, 48, 64)
    assert packer_of(ops, bits).pack(weight).num_bytes < most * ops.pack(weight).num_bytes


@pytest.mark.parametrize("weight", [torch.eye(24), torch.full((3, 32), np.nan), torch.full((3, 32), 3e38)])
def test_what_cannot_be_rounded_stays_in_the_targets_dtype(weight: Tensor) -> None:
    ops = CpuOps(torch.bfloat16)
    packed = ops.narrow().pack(weight)
    assert packed.layout is None
    assert torch.equal(ops.unpack(packed).nan_to_num(), weight.to(torch.bfloat16).nan_to_num())


def test_halves_of_a_gated_layer_of_which_one_cannot_be_rounded() -> None:
    ops, gate, up = CpuOps(torch.bfloat16), randn(1, 20, 32), torch.full((20, 32), 1e30)
    found = ops.gate_up(torch.ones(1, 32), None, EPS, ops.narrow().pack_gate_up(gate, up))
    assert found.shape == (1, 20)
    assert (found.abs() > 1e20).any()


@pytest.mark.parametrize("features", [4, 32])
def test_a_row_of_zeros_stays_zero(features: int) -> None:
    ops = CpuOps(torch.bfloat16)
    packed = ops.narrow().pack(torch.zeros(3, features))
    assert ops.norm_project(torch.ones(1, features), None, EPS, packed).tolist() == [[0.0] * 3]


def layouts(ops: Any) -> list[int | None]:
    packed = ops.narrow().pack(torch.eye(32))
    return [None if packed.layout is None else packed.layout.bits]


def test_only_bf16_targets_have_narrower_drafters(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = CpuOps(torch.float32)
    assert exact.narrow() is exact
    assert REFERENCE.narrow() is REFERENCE
    found = {}
    for setting in ("int8", "int4", "target"):
        monkeypatch.setenv("OUTRIDER_DRAFT_WEIGHTS", setting)
        found[setting] = layouts(CpuOps(torch.bfloat16))
    assert found == {"int8": [8], "int4": [4], "target": [None]}
    monkeypatch.setenv("OUTRIDER_DRAFT_WEIGHTS", "fp8")
    with pytest.raises(ConfigError, match="'fp8' must be int8 or int4 or target"):
        CpuOps(torch.bfloat16).narrow()
