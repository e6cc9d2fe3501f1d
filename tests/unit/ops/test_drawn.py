"""Draws of drafted chains: the kernel's and the plain definition's are those of `noise.pick` over the vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.noise import ChainLaws, Stream, chain_law, pick, position_keys
from outrider.ops.base import Ops
from outrider.ops.cpu import CpuOps
from outrider.ops.torch import TorchOps

VOCAB = 4096
OPS = [CpuOps(torch.float32), TorchOps(torch.float32)]


@pytest.mark.parametrize("ops", OPS, ids=["kernel", "plain"])
@settings(max_examples=25, deadline=None)
@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    first=st.integers(0, 2**20),
    level=st.integers(0, 9),
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]),
    columns=st.sampled_from([None, 1, 700, 1500]),
    spread=st.sampled_from([0.0, 3.0, 300.0]),
)
def test_a_draw_is_the_targets_at_that_position(
    ops: Ops,
    seeds: list[int],
    first: int,
    level: int,
    temperature: float,
    columns: int | None,
    spread: float,
) -> None:
    generator = torch.Generator().manual_seed(first)
    ids_K = None if columns is None else torch.randperm(VOCAB, generator=generator)[:columns].sort().values
    logits_RK = spread * torch.randn(len(seeds), VOCAB if columns is None else columns, generator=generator)
    tokens_R, out_RE = torch.empty(len(seeds), dtype=torch.int64), torch.empty(len(seeds), 8)
    embedding_VE = torch.randn(VOCAB, 8, generator=generator)
    laws = ChainLaws(torch.tensor([chain_law(temperature, seed, first) for seed in seeds]), level)
    ops.next_tokens(logits_RK, ids_K, embedding_VE, tokens_R, out_RE, laws)

    wide_RV = logits_RK
    if ids_K is not None:
        wide_RV = torch.full((len(seeds), VOCAB), -torch.inf).index_copy(1, ids_K, logits_RK)
    keys_R2 = position_keys(torch.tensor(seeds), torch.full((len(seeds),), first + level), Stream.TARGET)
    expected_R = pick(wide_RV, keys_R2, temperature) if temperature else wide_RV.argmax(-1)
    assert tokens_R.tolist() == expected_R.tolist()
    assert torch.equal(out_RE, embedding_VE[expected_R])
