"""Keys and values in int8: both back ends against quantisation and dense attention written out in numpy, in fp64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.ops.base import AttentionShape, Ops, Rope
from outrider.ops.cpu import CpuOps
from outrider.ops.torch import TorchOps
from outrider.placement import Placement

Floats = NDArray[np.float64]
S, SLOTS = 320, 2


def back_end(name: str) -> Ops:
    return CpuOps(torch.float32) if name == "cpu" else TorchOps(torch.float64)


def cache_of(ops: Ops, G: int, D: int) -> tuple[Tensor, Tensor]:
    """One layer's cache, empty, as a target allocates it."""
    plan = CachePlan(
        num_layers=1,
        num_slots=SLOTS,
        num_kv_heads=G,
        head_dim=D,
        capacity=S - 24,
        tail=23,
        dtype=torch.int8,
        transposed_keys=ops.transposes_keys,
    )
    cache = KVCache(plan)
    assert plan.num_bytes == cache.keys_LCHSD.nbytes + cache.values_LCHSD.nbytes == 2 * SLOTS * G * S * (D + 4)
    return cache.keys_LCHSD[0], cache.values_LCHSD[0]


def numbers(cached_HSD: Tensor) -> Floats:
    """Decode heads byte by byte: codes, then a little-endian fp32 scale."""
    data = np.ascontiguousarray(cached_HSD.numpy())
    scales = np.frombuffer(np.ascontiguousarray(data[..., -4:]).tobytes(), dtype="<f4").reshape(data.shape[:-1])
    return data[..., :-4].astype(np.float64) * scales[..., None]


def rotated(heads_MGD: Floats, angles_MD: Floats) -> Floats:
    left, right = np.split(heads_MGD, 2, axis=-1)
    cos, sin = np.cos(angles_MD)[:, None], np.sin(angles_MD)[:, None]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


@pytest.mark.parametrize("name", ["cpu", "torch"])
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    G=st.integers(1, 2),
    group=st.integers(1, 5),
    D=st.sampled_from([2, 6, 16, 20, 64, 80]),
    before=st.sampled_from([0, 1, 7, 70, 190]),
    M=st.integers(1, 9),
    spread=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_attention_reads_what_it_rounded(
    name: str, seed: int, G: int, group: int, D: int, before: int, M: int, spread: float
) -> None:
    """A prompt and a step of a causal chunk; what the cache holds is attended to, in fp64, by a dense softmax."""
    ops, draw, H = back_end(name), np.random.default_rng(seed), G * group
    keys, values = cache_of(ops, G, D)
    frequencies = 10000.0 ** -(np.arange(0, D, 2) / D)
    angles_SD = np.outer(np.arange(S), frequencies)
    wide = ops.activation_dtype
    rope = Rope(cos_PD=torch.tensor(np.cos(angles_SD), dtype=wide), sin_PD=torch.tensor(np.sin(angles_SD), dtype=wide))
    shape = AttentionShape(num_heads=H, num_kv_heads=G, head_dim=D, scale=D**-0.5)
    qkv_RHD = draw.standard_normal((before + M, H + 2 * G, D)).astype(np.float32).astype(np.float64)
    qkv_RHD[:, H:] *= spread
    out = torch.empty(0)
    for first, last in ((0, before), (before, before + M)):
        if last == first:
            continue
        at = torch.arange(first, last)[None]
        placement = Placement(
            slots_B=torch.tensor([1]),
            lengths_B=torch.tensor([first]),
            positions_BM=at,
            write_BM=at,
            mask_BMT=None,
            limit=last,
        )
        rows_RQ = torch.tensor(qkv_RHD[first:last].reshape(last - first, -1), dtype=wide)
        out = ops.attend(rows_RQ, shape, rope, keys, values, placement)

    end = before + M
    held_k, held_v = (numbers(side[1, :, :end]) for side in (keys, values))
    for held_GSD, true_SGD in (
        (held_k, rotated(qkv_RHD[:, H : H + G], angles_SD[:end])),
        (held_v, qkv_RHD[:, H + G :]),
    ):
        true_GSD = true_SGD.transpose(1, 0, 2)
        half_step = np.abs(true_GSD).max(-1, keepdims=True) / 254
        assert (np.abs(held_GSD - true_GSD) <= half_step * (1 + 1e-3)).all()
    q_MHD = rotated(qkv_RHD[before:, :H], angles_SD[before:end])
    for m in range(M):
        for h in range(H):
            seen = slice(0, before + m + 1)
            scores = held_k[h // group, seen] @ q_MHD[m, h] * D**-0.5
            weights = np.exp(scores - scores.max())
            want_D = weights @ held_v[h // group, seen] / weights.sum()
            got_D = out[m].view(H, D)[h].double().numpy()
            tolerance = 2e-5 * (1 + np.abs(scores).max()) * np.abs(held_v[h // group, seen]).max()
            np.testing.assert_allclose(got_D, want_D, rtol=0, atol=tolerance)


def stored_values(ops: Ops, head_D: list[float]) -> Tensor:
    """Return the cached value of one row, whose other numbers are 1."""
    D = len(head_D)
    keys, values = cache_of(ops, 1, D)
    rope = Rope(cos_PD=torch.ones(S, D // 2), sin_PD=torch.zeros(S, D // 2))
    at = torch.zeros(1, 1, dtype=torch.int64)
    placement = Placement(
        slots_B=torch.tensor([0]), lengths_B=at[0], positions_BM=at, write_BM=at, mask_BMT=None, limit=1
    )
    row = torch.tensor([[1.0] * 2 * D + head_D]).to(ops.activation_dtype)
    shape = AttentionShape(num_heads=1, num_kv_heads=1, head_dim=D, scale=1.0)
    ops.attend(row, shape, rope, keys, values, placement)
    return values[0, 0, 0]


@pytest.mark.parametrize("name", ["cpu", "torch"])
def test_codes_and_scale_of_a_head(name: str) -> None:
    """By hand: the scale is a 127th of the largest size; halves round to the even code."""
    cached = stored_values(back_end(name), [127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.4] * 5)
    assert cached[:-4].tolist() == [127, -127, 0, 2, 2, 0, -2, 126] * 5
    assert np.frombuffer(cached[-4:].numpy().tobytes(), "<f4") == 1.0


@pytest.mark.parametrize("name", ["cpu", "torch"])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39])
def test_heads_of_zeros_and_of_the_smallest_numbers_stay_finite(name: str, size: float) -> None:
    cached = stored_values(back_end(name), [size, -size] * 9)
    assert np.isfinite(numbers(cached)).all()
    assert np.abs(numbers(cached) - np.array([size, -size] * 9)).max() <= 2.0**-127


@pytest.mark.parametrize("name", ["cpu", "torch"])
@pytest.mark.parametrize("lost", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 17])
def test_numbers_that_are_not_finite_do_not_vanish(name: str, lost: float, place: int) -> None:
    """An engine ends a request whose logits are not numbers; rounding must not hide them."""
    head = [1.0] * 18
    head[place] = lost
    cached = stored_values(back_end(name), head)
    assert not np.isfinite(np.frombuffer(cached[-4:].numpy().tobytes(), "<f4")).any()


def test_both_back_ends_store_the_same_bytes() -> None:
    values = np.random.default_rng(5).standard_normal(64).astype(np.float32).tolist()
    kernels, plain = stored_values(CpuOps(torch.float32), values), stored_values(TorchOps(torch.float32), values)
    assert torch.equal(kernels, plain)
