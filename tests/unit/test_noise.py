"""The noise: compiled and plain paths agree, laws are met, and no two decisions share a number by accident."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.noise import Stream, gumbel, pick, position_key, position_keys, uniform

SEEDS = st.integers(-(2**63), 2**63 - 1)
POSITIONS = st.integers(0, 2**20)


def keys(num_rows: int, seed: int = 1, stream: Stream = Stream.TARGET) -> Tensor:
    return position_keys(torch.full((num_rows,), seed), torch.arange(num_rows), stream)


def p_value(counts_V: Tensor, probs_V: Tensor) -> float:
    """Of the chi-square test that `counts_V` were drawn from `probs_V`."""
    assert counts_V[probs_V == 0].sum() == 0
    expected_V = counts_V.sum() * probs_V[probs_V > 0].double()
    statistic = ((counts_V[probs_V > 0] - expected_V) ** 2 / expected_V).sum()
    half_freedom = torch.tensor((len(expected_V) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_freedom, statistic / 2))


def plain(logits_RV: Tensor, keys_R2: Tensor) -> Tensor:
    return (logits_RV.double() + gumbel(keys_R2, logits_RV.shape[1])).argmax(-1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    vocab_size=st.sampled_from([1, 2, 3, 31, 511, 512, 513, 2000]),
    scale=st.sampled_from([0.0, 0.1, 1.0, 8.0, 100.0, 1e5]),
    hidden=st.sampled_from([0.0, 0.5, 0.99]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    temperature=st.sampled_from([1.0, 0.01, 0.7, 1.5, 100.0]),
    seed=SEEDS,
)
def test_the_compiled_pick_is_the_argmax_of_logits_and_gumbel(
    rows: int, vocab_size: int, scale: float, hidden: float, dtype: torch.dtype, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    logits_RV = torch.randn(rows, vocab_size, generator=generator, dtype=dtype) * scale
    logits_RV[torch.rand(rows, vocab_size, generator=generator) < hidden] = -torch.inf
    logits_RV[:, vocab_size // 2] = 0.0
    keys_R2 = keys(rows, seed)
    assert pick(logits_RV, keys_R2, temperature).tolist() == plain(logits_RV / temperature, keys_R2).tolist()


@pytest.mark.parametrize("shape", ["flat", "wide", "peaked", "late peak", "few"])
def test_the_compiled_pick_agrees_on_a_large_vocabulary(shape: str) -> None:
    logits_RV = torch.randn(16, 50_000, generator=torch.Generator().manual_seed(3)) * (0.01 if shape == "flat" else 3.0)
    if shape.endswith("peak"):
        logits_RV[:, -1] = 25.0
    if shape == "peaked":
        logits_RV[:, 7] = 25.0
    if shape == "few":
        kept_RV = torch.full_like(logits_RV, -torch.inf)
        kept_RV[:, ::5000] = logits_RV[:, ::5000]
        logits_RV = kept_RV
    assert torch.equal(pick(logits_RV, keys(16)), plain(logits_RV, keys(16)))


def test_a_token_with_logit_minus_infinity_is_never_picked() -> None:
    logits_RV = torch.full((2000, 40), -torch.inf)
    logits_RV[:, [3, 17]] = torch.tensor([0.0, -3.0])
    assert set(pick(logits_RV, keys(2000)).tolist()) == {3, 17}


@pytest.mark.parametrize("seed", [0, 1, -5, 2**40])
def test_frequencies_are_softmax_over_positions(seed: int) -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0, -1.0, -torch.inf, 0.5])
    tokens_R = pick(logits_V.expand(40_000, 6), keys(40_000, seed))
    assert p_value(torch.bincount(tokens_R, minlength=6), logits_V.softmax(-1)) > 0.001


def test_frequencies_are_softmax_over_seeds() -> None:
    logits_V = torch.tensor([0.3, -0.2, 1.5])
    keys_R2 = position_keys(torch.arange(40_000), torch.full((40_000,), 9), Stream.DRAFT)
    assert p_value(torch.bincount(pick(logits_V.expand(40_000, 3), keys_R2), minlength=3), logits_V.softmax(-1)) > 0.001


@pytest.mark.parametrize("stream", Stream)
def test_uniform_numbers_are_uniform(stream: Stream) -> None:
    numbers_R = uniform(keys(20_000, 4, stream))
    assert (numbers_R > 0).all()
    assert (numbers_R < 1).all()
    assert p_value(torch.histc(numbers_R, 50, 0, 1), torch.full((50,), 0.02)) > 0.001


@pytest.mark.parametrize("other", ["stream", "position", "seed", "high word of the seed", "draw"])
def test_numbers_of_two_decisions_are_independent(other: str) -> None:
    """Chi-square on the 8 x 8 table of the two numbers."""
    positions_R = torch.arange(20_000)
    seeds_R = torch.full_like(positions_R, 77)
    first_R = uniform(position_keys(seeds_R, positions_R, Stream.ACCEPT))
    second_R2 = {
        "stream": position_keys(seeds_R, positions_R, Stream.DRAFT),
        "position": position_keys(seeds_R, positions_R + 1, Stream.ACCEPT),
        "seed": position_keys(seeds_R + 1, positions_R, Stream.ACCEPT),
        "high word of the seed": position_keys(seeds_R + 2**32, positions_R, Stream.ACCEPT),
        "draw": position_keys(seeds_R, positions_R, Stream.ACCEPT, draw=1),
    }[other]
    cells_R = (first_R * 8).long() * 8 + (uniform(second_R2) * 8).long()
    assert p_value(torch.bincount(cells_R, minlength=64), torch.full((64,), 1 / 64)) > 0.001


def test_keys_differ_across_stream_position_seed_and_draw() -> None:
    coordinates = list(itertools.product([0, 1, -1, 2**32, 2**62], range(20), Stream, range(4)))
    assert len({position_key(*coordinate) for coordinate in coordinates}) == len(coordinates)


@given(seed=SEEDS, position=POSITIONS, stream=st.sampled_from(Stream), draw=st.integers(0, 100))
def test_a_key_on_the_host_is_the_key_in_a_tensor(seed: int, position: int, stream: Stream, draw: int) -> None:
    keys_12 = position_keys(torch.tensor([seed]), torch.tensor([position]), stream, draw)
    key = position_key(seed, position, stream, draw)
    assert keys_12.tolist() == [list(key)]
    assert uniform(keys_12).item() == key.uniform


def test_one_flipped_bit_of_the_position_flips_half_of_the_key() -> None:
    positions_R = torch.arange(2000)
    for bit in range(20):
        changed_R2 = keys(2000) ^ position_keys(torch.full((2000,), 1), positions_R ^ (1 << bit), Stream.TARGET)
        flips = torch.stack([(changed_R2 >> place) & 1 for place in range(32)]).double().mean((1, 2))
        assert flips.mean() == pytest.approx(0.5, abs=0.02)
        assert flips.min() > 0.35
        assert flips.max() < 0.65


def test_rows_do_not_depend_on_their_neighbours() -> None:
    logits_RV = torch.randn(8, 100, generator=torch.Generator().manual_seed(1))
    together = pick(logits_RV, keys(8))
    alone = torch.cat([pick(logits_RV[row : row + 1], keys(8)[row : row + 1]) for row in range(8)])
    assert torch.equal(together, alone)
