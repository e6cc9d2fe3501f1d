"""The Triton back end against the reference in fp64: every operation, and attention over drawn placements."""

import pytest
import torch
from attention_cases import TRASH, Call, calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed; it comes with PyTorch for CUDA")
from outrider.ops.torch import TorchOps
from outrider.ops.triton import TritonOps, _Tiling

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy speaks up about exp(-inf)
REFERENCE = TorchOps(torch.float64)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-2}
EPS = 1e-5
few = settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])


def dtypes(device: str) -> list[torch.dtype]:
    return [torch.float64, torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.double().cpu(), want.cpu(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@few
@given(call=calls(), data=st.data())
def test_attention_matches_the_reference(device: str, call: Call, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(dtypes(device)))
    ours = call.to(dtype, device)
    theirs = ours.to(torch.float64, "cpu")  # what both compute from is rounded alike
    close(ours.run(TritonOps(dtype, device)), theirs.run(REFERENCE), dtype)
    for got, want in ((ours.keys_CHSD, theirs.keys_CHSD), (ours.values_CHSD, theirs.values_CHSD)):
        close(got[:, :, :TRASH], want[:, :, :TRASH], dtype)


@few
@given(call=calls())
def test_storing_leaves_what_attending_leaves(device: str, call: Call) -> None:
    ops, stores = TritonOps(torch.float32, device), call.to(torch.float32, device)
    attends = stores.to(torch.float32, device)
    kept = stores.keys_CHSD, stores.values_CHSD
    ops.store(stores.qkv_RQ, stores.shape, stores.rope, *kept, stores.placement, stores.head_norm)
    attends.run(ops)
    for ours, theirs in zip(kept, (attends.keys_CHSD, attends.values_CHSD), strict=True):
        assert torch.equal(ours[:, :, :TRASH], theirs[:, :, :TRASH])


@settings(few, max_examples=1)
@given(call=calls(most_rows=80))
def test_long_chunks_and_wide_trees_match_the_reference(device: str, call: Call) -> None:
    close(call.to(torch.float32, device).run(TritonOps(torch.float32, device)), call.run(REFERENCE), torch.float32)


@few
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 9), features=st.integers(1, 70), outputs=st.integers(1, 70))
def test_projections_match_the_reference(device: str, seed: int, rows: int, features: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x, norm, weight, up, bias = (
        randn(rows, features),
        randn(features),
        randn(outputs, features),
        randn(outputs, features),
        randn(outputs),
    )
    residual, collected = randn(rows, outputs), randn(rows, features + 3)
    for dtype in dtypes(device)[:1]:
        ops = TritonOps(dtype, device)
        mine = [one.to(device, dtype, copy=True) for one in (x, norm, weight, up, bias, residual, collected)]
        wide = [one.double().cpu() for one in mine]
        results = []
        for back, (a, n, w, u, b, r, c) in ((ops, mine), (REFERENCE, wide)):
            projected = back.norm_project(a, n, EPS, back.pack(w, b))
            back.project_add(a, back.pack(w, b), r)
            back.collect(a, n, EPS, c, 2)
            results.append((projected, r, c, back.gate_up(a, n, EPS, back.pack_gate_up(w, u))))
        for got, want in zip(*results, strict=True):
            close(got, want, dtype)


@pytest.mark.parametrize(("slots", "rows", "parts"), [(1, 1, 64), (1, 3, 64), (16, 4, 4), (64, 8, 1), (512, 1, 1)])
def test_the_parts_fill_the_device(slots: int, rows: int, parts: int) -> None:
    shape = calls_shape(28, 4)
    assert _Tiling.of(slots, rows, shape, 5000).parts == parts


def calls_shape(heads: int, groups: int):
    from outrider.ops.base import AttentionShape

    return AttentionShape(num_heads=heads, num_kv_heads=groups, head_dim=128, scale=1.0)
