"""Rotary tables equal those of `transformers` bit for bit, over random parameters of every scaling."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from outrider.errors import CapacityError
from outrider.models.rope import reach, rope_frequencies, rope_tables
from outrider.models.spec import DecoderSpec

FACTORS = st.sampled_from([1.0, 1.5, 4.0, 8.0, 32.0])
OPTIONAL_SCALE = st.none() | st.floats(0.5, 2.0)
SCALINGS = st.one_of(
    st.just({"rope_type": "default"}),
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": FACTORS}),
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": FACTORS}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": FACTORS,
            "low_freq_factor": st.floats(0.5, 1.5),
            "high_freq_factor": st.floats(2.0, 6.0),
            "original_max_position_embeddings": st.sampled_from([64, 2048]),
        }
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "factor": FACTORS,
            "original_max_position_embeddings": st.sampled_from([64, 2048]),
            "attention_factor": OPTIONAL_SCALE,
            "beta_fast": st.none() | st.floats(8.0, 64.0),
            "beta_slow": st.none() | st.floats(0.5, 4.0),
            "mscale": OPTIONAL_SCALE,
            "mscale_all_dim": OPTIONAL_SCALE,
            "truncate": st.booleans(),
        }
    ),
)


def config_with(rope: dict, theta: float = 10_000.0, head_dim: int = 16) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": theta, **rope},
    )


@settings(max_examples=100, deadline=None)
@given(
    rope=SCALINGS, theta=st.sampled_from([100.0, 10_000.0, 500_000.0, 1e6]), head_dim=st.sampled_from([4, 16, 64, 128])
)
def test_tables_equal_transformers(rope: dict, theta: float, head_dim: int) -> None:
    config = config_with(rope, theta, head_dim)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(40)[None])
    tables = rope_tables(DecoderSpec.from_config(config), 40)
    assert torch.equal(tables.cos_PD, cos[0])
    assert torch.equal(tables.sin_PD, sin[0])


@settings(max_examples=50, deadline=None)
@given(
    head_dim=st.sampled_from([8, 16, 96, 128]),
    share=st.sampled_from([0.5, 0.75, 1.0]),
    factor=st.none() | FACTORS,
    attention_factor=OPTIONAL_SCALE,
    original=st.sampled_from([64, 4096]),
    draw=st.randoms(use_true_random=False),
)
def test_longrope_within_its_original_context_equals_transformers(
    head_dim: int,
    share: float,
    factor: float | None,
    attention_factor: float | None,
    original: int,
    draw: random.Random,
) -> None:
    planes = int(head_dim * share) // 2
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": share, "factor": factor}
    rope |= {"attention_factor": attention_factor}
    rope |= {name: [draw.uniform(1, 60) for _ in range(planes)] for name in ("short_factor", "long_factor")}
    config = Phi3Config(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=8192,
        original_max_position_embeddings=original,
        rope_parameters={key: value for key, value in rope.items() if value is not None},
        pad_token_id=0,
    )
    cos, sin = Phi3RotaryEmbedding(config)(torch.zeros(1), torch.arange(40)[None])
    tables = rope_tables(DecoderSpec.from_config(config), 40)
    assert torch.equal(tables.cos_PD, cos[0])
    assert torch.equal(tables.sin_PD, sin[0])


def test_longrope_is_refused_where_its_frequencies_would_change() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    spec = DecoderSpec.from_config(config_with({**rope, "original_max_position_embeddings": 1024}))
    assert spec.max_positions == reach(spec) == 1024
    assert rope_tables(spec, 1024, beyond=7).cos_PD.shape == (1031, 16)
    with pytest.raises(CapacityError, match="1025 positions exceed the original context of 1024"):
        rope_tables(spec, 1025)


def test_a_yarn_ramp_without_width_equals_transformers() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    config = config_with({**rope, "beta_fast": 8.0, "beta_slow": 8.0, "truncate": False})
    frequencies = rope_frequencies(DecoderSpec.from_config(config)).inv_freq
    assert torch.equal(frequencies, LlamaRotaryEmbedding(config).inv_freq)
    assert frequencies.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 0.5}, 0.5),
        ({"mscale": 0.7, "mscale_all_dim": 1.0}, (0.07 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
        ({"mscale": 0.7}, 0.1 * math.log(4) + 1),
    ],
)
def test_yarn_scales_cos_and_sin(fields: dict, expected: float) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    factor = rope_frequencies(DecoderSpec.from_config(config_with({**rope, **fields}))).attention_factor
    assert factor == pytest.approx(expected)


def test_llama4_s_scaling_without_a_blend_equals_transformers() -> None:
    rope = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
    config = config_with({**rope, "original_max_position_embeddings": 64}, theta=5e5, head_dim=128)
    frequencies = rope_frequencies(DecoderSpec.from_config(config)).inv_freq
    assert torch.equal(frequencies, LlamaRotaryEmbedding(config).inv_freq)
    assert frequencies.isfinite().all()


def test_worked_example() -> None:
    tables = rope_tables(DecoderSpec.from_config(config_with({"rope_type": "default"}, head_dim=4)), 4)
    torch.testing.assert_close(tables.cos_PD[3], torch.tensor([3, 0.03, 3, 0.03]).cos())
    torch.testing.assert_close(tables.sin_PD[3], torch.tensor([3, 0.03, 3, 0.03]).sin())


def test_llama3_keeps_short_wavelengths_and_divides_long_ones() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = config_with({**rope, "original_max_position_embeddings": 64})
    plain = rope_frequencies(DecoderSpec.from_config(config_with({"rope_type": "default"}))).inv_freq
    scaled = rope_frequencies(DecoderSpec.from_config(config)).inv_freq
    assert scaled[0] == plain[0]
    assert scaled[-1] == plain[-1] / 8


def test_dynamic_is_refused_where_frequencies_would_change() -> None:
    spec = DecoderSpec.from_config(config_with({"rope_type": "dynamic", "factor": 2.0}))
    assert rope_tables(spec, 4096).cos_PD.shape == (4096, 16)
    with pytest.raises(CapacityError, match="4097 positions exceed max_position_embeddings 4096"):
        rope_tables(spec, 4097)


def test_whole_numbers_of_any_size_are_read_as_real_ones() -> None:
    def read(theta: float, factor: float) -> torch.Tensor:
        rope = {"rope_type": "linear", "rope_theta": theta, "factor": factor}
        config = LlamaConfig(hidden_size=16, num_attention_heads=4, rope_parameters=rope)
        return rope_frequencies(DecoderSpec.from_config(config)).inv_freq

    assert torch.equal(read(10**30, 10**20), read(1e30, 1e20))
