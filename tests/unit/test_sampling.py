"""The transforms equal those of Hugging Face's `generate`, and greedy is the limit that it should be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from outrider.errors import RequestError
from outrider.kernels.nucleus import nucleus
from outrider.noise import Stream, pick, position_keys
from outrider.sampling import SamplingParams, _cut, choose, distribution, transform


def reference(logits_RV: Tensor, sampling: SamplingParams) -> Tensor:
    """The same settings through `transformers`."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return steps(torch.zeros(len(logits_RV), 1, dtype=torch.int64), logits_RV)


settings_of_requests = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5.0),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 10_000]),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 0.99]),
)


@settings(max_examples=150, deadline=None)
@given(sampling=settings_of_requests, seed=st.integers(0, 2**31), vocab_size=st.sampled_from([2, 7, 64, 500]))
def test_transform_equals_the_processors_of_transformers(sampling: SamplingParams, seed: int, vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_RV = 3 * torch.randn(4, vocab_size, generator=generator, dtype=torch.float64)
    ours_RV, theirs_RV = transform(logits_RV, sampling), reference(logits_RV, sampling)
    assert torch.equal(ours_RV.isinf(), theirs_RV.isinf())
    torch.testing.assert_close(ours_RV, theirs_RV)
    torch.testing.assert_close(distribution(logits_RV, sampling), theirs_RV.softmax(-1))


@pytest.mark.parametrize(("top_p", "kept"), [(0.1, 1), (0.45, 1), (0.55, 2), (0.75, 2), (0.9, 3), (0.97, 4), (1.0, 4)])
def test_top_p_keeps_the_token_that_crosses_the_threshold(top_p: float, kept: int) -> None:
    probs_RV = torch.tensor([[0.1, 0.5, 0.05, 0.35]]).double()
    assert (distribution(probs_RV.log(), SamplingParams(temperature=1.0, top_p=top_p)) > 0).sum() == kept


def test_each_filter_alone() -> None:
    logits_RV = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    assert distribution(logits_RV, SamplingParams(temperature=1.0, top_k=1)).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    kept_RV = distribution(logits_RV, SamplingParams(temperature=1.0, min_p=0.4))
    torch.testing.assert_close(kept_RV, torch.tensor([[2 / 3, 1 / 3, 0.0, 0.0]]))
    colder_RV = distribution(logits_RV, SamplingParams(temperature=0.5))
    torch.testing.assert_close(colder_RV, (logits_RV.exp() ** 2) / (logits_RV.exp() ** 2).sum())


def test_ties_with_the_kth_logit_are_kept() -> None:
    assert (distribution(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), SamplingParams(temperature=1.0, top_k=2)) > 0).sum() == 3


def test_greedy_is_one_hot_and_ties_go_to_the_lowest_id() -> None:
    logits_RV = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, -1.0, 0.0, 5.0]])
    assert distribution(logits_RV, SamplingParams()).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert choose(logits_RV, torch.arange(3), [SamplingParams()] * 3).tolist() == [1, 0, 3]


def test_transform_leaves_its_input_and_widens_half_precision() -> None:
    logits_RV = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).bfloat16()
    before_RV = logits_RV.clone()
    for sampling in (SamplingParams(), SamplingParams(temperature=0.7, top_k=3, top_p=0.9, min_p=0.1)):
        assert transform(logits_RV, sampling).dtype == torch.float32
    assert torch.equal(logits_RV, before_RV)


def test_choose_draws_each_row_by_its_own_settings_seed_and_position() -> None:
    logits_RV = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    positions_R = torch.tensor([3, 9, 3, 4, 8, 9])
    mixed = [SamplingParams(), *(SamplingParams(temperature=1.5, top_k=20, seed=row // 3) for row in range(1, 6))]
    for stream in (Stream.TARGET, Stream.DRAFT):
        chosen = choose(logits_RV, positions_R, mixed, stream).tolist()
        assert chosen[0] == logits_RV[0].argmax()
        for row in range(1, 6):
            key_12 = position_keys(torch.tensor([mixed[row].seed]), positions_R[row : row + 1], stream)
            assert chosen[row] == pick(transform(logits_RV[row : row + 1], mixed[row]), key_12).item()


@pytest.mark.parametrize(
    ("settings_given", "named"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 0.001}, "temperature=0.001"),
        ({"temperature": 101.0}, "temperature=101.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -2}, "top_k=-2"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"min_p": 1.0}, "min_p=1.0"),
        ({"seed": 2**63}, f"seed={2**63}"),
    ],
)
def test_a_setting_out_of_range_is_named(settings_given: dict[str, float], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        SamplingParams(**settings_given)


def test_filters_says_whether_tokens_are_cut() -> None:
    assert not SamplingParams(top_k=5).filters
    assert not SamplingParams(temperature=1.0).filters
    for cut in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert SamplingParams(temperature=1.0, **cut).filters


def test_the_nucleus_is_the_one_that_sorting_finds() -> None:
    """Flat, peaked and tied rows, and one token that has it all."""
    generator = torch.Generator().manual_seed(0)
    flat_RV = 0.01 * torch.randn(4, 500, generator=generator)
    peaked_RV = 5.0 * torch.randn(4, 500, generator=generator)
    tied_RV = torch.randint(0, 4, (4, 500), generator=generator).float()
    certain_RV = torch.zeros(1, 500).index_fill_(1, torch.tensor([7]), 1000.0)
    for logits_RV in (flat_RV, peaked_RV, tied_RV, certain_RV, torch.cat([flat_RV, tied_RV]).double()):
        for top_p in (1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9):
            cut_RV = _cut(logits_RV, logits_RV.double().softmax(-1), top_p)
            want_RV = logits_RV.masked_fill(cut_RV, -torch.inf)
            got_RV = torch.from_numpy(nucleus(logits_RV.numpy(), logits_RV.double().softmax(-1).numpy(), top_p))
            assert torch.equal(got_RV, want_RV)


def test_rounding_that_loses_mass_cuts_nothing() -> None:
    logits_RV = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert np.array_equal(nucleus(logits_RV, 0.9 * np.exp(logits_RV), 0.95), logits_RV)
