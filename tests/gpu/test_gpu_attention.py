"""PyTorch's fused attention in the decoder's form, against the reference in fp64."""

import pytest
import torch
from attention_cases import TRASH, Call, calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.ops.torch import TorchOps


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_fused_attention_matches_the_reference(device: str, call: Call, dtype: torch.dtype) -> None:
    ours = call.to(dtype, device)
    theirs = ours.to(torch.float64, "cpu")
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    got, want = ours.run(TorchOps(dtype, device, fused=True)), theirs.run(TorchOps(torch.float64))
    torch.testing.assert_close(got.double().cpu(), want, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        ours.keys_CHSD[:, :, :TRASH].double().cpu(), theirs.keys_CHSD[:, :, :TRASH], atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("slots", [1, 2])
def test_one_slot_is_read_in_place(slots: int) -> None:
    from outrider.ops.base import Placement
    from outrider.ops.torch import _cached

    cache_CHSD = torch.zeros(slots, 2, 8, 4)
    index = torch.zeros(slots, dtype=torch.int64)
    rows = index[:, None]
    placement = Placement(slots_B=index, lengths_B=index, positions_BM=rows, write_BM=rows, mask_BMT=None, limit=5)
    near_BHSD = _cached(cache_CHSD, placement)
    assert near_BHSD.shape == (slots, 2, 5, 4)
    assert (near_BHSD.data_ptr() == cache_CHSD.data_ptr()) == (slots == 1)
