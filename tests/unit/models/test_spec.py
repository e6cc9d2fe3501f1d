"""A spec states the network of a config exactly, or says in one sentence why it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from outrider.errors import CheckpointError
from outrider.formats.tensors.stored import fused_names
from outrider.models.spec import DecoderSpec, RopeSpec, is_supported

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = [
    LlamaConfig(**TINY),
    LlamaConfig(**TINY, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=6),
    Qwen2Config(**TINY, tie_word_embeddings=True),
    Qwen3Config(**TINY, head_dim=8),
    Qwen3Config(**TINY, head_dim=8, attention_bias=True),
    MistralConfig(**TINY, head_dim=6),
    Phi3Config(**TINY, pad_token_id=0, sliding_window=7),
    Phi3Config(**TINY, pad_token_id=0, rope_parameters={"partial_rotary_factor": 0.5}),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_weight_shapes_are_those_of_the_hugging_face_model(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert DecoderSpec.from_config(config).weight_shapes() == expected


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_saved_config_reads_back_equal(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    spec = DecoderSpec.from_config_file(tmp_path)
    assert spec == DecoderSpec.from_config(config) == DecoderSpec.from_config_file(tmp_path / "config.json")
    assert (spec.num_heads, spec.num_kv_heads, spec.num_layers) == (4, 2, 3)


def write_config(directory: Path, **fields: Any) -> Path:
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **TINY, **fields}))
    return directory


def test_both_ways_to_write_rope_settings_mean_the_same(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = write_config(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    spec = DecoderSpec.from_config_file(old)
    new = write_config(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert spec == DecoderSpec.from_config_file(new)
    assert spec.rope == RopeSpec(type="llama3", theta=5e5, **scaling)


def test_the_oldest_key_for_the_scaling_type_is_read(tmp_path: Path) -> None:
    spec = DecoderSpec.from_config_file(write_config(tmp_path, rope_scaling={"type": "linear", "factor": 2.0}))
    assert (spec.rope.type, spec.rope.factor, spec.rope.theta) == ("linear", 2.0, 10_000.0)


def test_yarn_without_a_factor_takes_the_ratio_of_context_lengths() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": None, "original_max_position_embeddings": 512}
    spec = DecoderSpec.from_config(LlamaConfig(**TINY, max_position_embeddings=2048, rope_parameters=rope))
    assert spec.rope.factor == 4.0


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(2, None, (2,)), (2, [2, 0], (2, 0)), ([7, 8], 9, (9, 7, 8)), (None, None, ()), (0, 0, (0,))],
)
def test_end_ids_join_both_files(in_config: Any, in_generation: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=in_config)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert DecoderSpec.from_config_file(tmp_path).eos_ids == expected


def test_layers_of_llama_4_are_those_of_its_model() -> None:
    config = Llama4TextConfig(**TINY | {"num_hidden_layers": 4}, interleave_moe_layer_step=2, num_local_experts=2)
    spec = DecoderSpec.from_config(config)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    names = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shapes = spec.weight_shapes()
    assert fused_names(shapes).keys() == names.keys()
    others = {name: shape for name, shape in names.items() if ".experts." not in name}
    assert {name: shapes[name] for name in others} == others
    assert (spec.rotated, spec.chunks) == ((True, True, True, False), (8192, 8192, 8192, None))
    assert [spec.experts_of(layer) is not None for layer in range(4)] == [False, True, False, True]


def test_windows_follow_the_layers() -> None:
    assert DecoderSpec.from_config(LlamaConfig(**TINY)).windows == (None, None, None)
    assert DecoderSpec.from_config(MistralConfig(**TINY, sliding_window=8)).windows == (8, 8, 8)
    assert DecoderSpec.from_config(MistralConfig(**TINY, sliding_window=None)).windows == (None, None, None)
    qwen = Qwen2Config(**TINY, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert DecoderSpec.from_config(qwen).windows == (None, None, 8)
    assert DecoderSpec.from_config(Qwen2Config(**TINY, sliding_window=8)).windows == (None, None, None)
    named = Qwen3Config(
        **TINY,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    assert DecoderSpec.from_config(named).windows == (8, None, 8)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PhiConfig(), "model_type 'phi' is not one of llama, qwen2, qwen3, qwen3_moe, mistral"),
        (LlamaConfig(**TINY, hidden_act="gelu"), "hidden_act is 'gelu'"),
        (LlamaConfig(**TINY, quantization_config={"quant_method": "fp8"}), "quantised by 'fp8', which is not read"),
        (LlamaConfig(**{**TINY, "num_key_value_heads": 3}), "num_attention_heads 4 is not a multiple"),
        (LlamaConfig(**TINY, head_dim=3), "head_dim 3 is odd"),
        (LlamaConfig(**TINY, partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        (Qwen3MoeConfig(**TINY, num_experts=4, num_experts_per_tok=5), "num_experts_per_tok 5 is not within 1..num_"),
        (Llama4TextConfig(**TINY, num_experts_per_tok=17), "num_experts_per_tok 17 is not within 1..num_local_experts"),
        (Llama4TextConfig(**TINY, attention_chunk_size=None), "attention_chunk_size is null in a model with chunked"),
        (
            Llama4TextConfig(**TINY, no_rope_layers=[1, 1], layer_types=["full_attention"] * 3),
            "no_rope_layers has 2 entries for 3 layers",
        ),
        (
            Llama4TextConfig(**TINY, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
            "rope_type 'yarn' is not one of default, linear, llama3",
        ),
        (MistralConfig(**TINY, layer_types=["full_attention"] * 3), "mistral config with layer_types"),
        (
            LlamaConfig(
                **TINY,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "short_factor": [1.0, 1.0],
                    "long_factor": [1.0, 1.0, 1.0],
                },
            ),
            "long_factor has 3 numbers for 2 planes of a head",
        ),
        (Phi3Config(**TINY, pad_token_id=0, partial_rotary_factor=0.3), "partial_rotary_factor 0.3 turns 1 of the 4"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_cannot_run_exactly_is_refused_with_its_reason(config: PreTrainedConfig, reason: str) -> None:
    assert reason in (is_supported(config) or "")
    with pytest.raises(CheckpointError, match="use the hf target"):
        DecoderSpec.from_config(config)


def test_the_published_keys_of_phi_3_are_read(tmp_path: Path) -> None:
    known = {"model_type": "phi3", "original_max_position_embeddings": 64, "max_position_embeddings": 256}
    others = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attention_bias": False, "lm_head_bias": False, "pad_token_id": 0}
    scaling = {"type": "longrope", "long_factor": [2.0], "short_factor": [1.5]}
    path = write_config(
        tmp_path,
        **known | others,
        sliding_window=262_144,
        partial_rotary_factor=0.5,
        rope_scaling=scaling,
    )
    spec = DecoderSpec.from_config_file(path)
    assert (spec.rope.type, spec.rope.short_factor, spec.rope.long_factor) == ("longrope", (1.5,), (2.0,))
    assert (spec.rotary_dim, spec.rope.factor, spec.rope.original_max_position_embeddings) == (2, 4.0, 64)
    assert (spec.max_positions, spec.max_position_embeddings, spec.windows) == (64, 256, (262_144,) * 3)


def test_a_layer_kind_nobody_knows_is_refused() -> None:
    config = Qwen2Config(**TINY)
    config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    assert is_supported(config) == "layer_types holds 'chunked_attention'"


def test_everything_in_the_family_is_supported() -> None:
    assert [is_supported(config) for config in CONFIGS] == [None] * len(CONFIGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list, not a JSON object"),
        (
            '{"model_type": "gemma"}',
            "model_type 'gemma'; the native decoder runs llama, qwen2, qwen3, qwen3_moe, mistral",
        ),
        ("{}", "model_type 'None'"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "not a valid llama config: .*hidden_size"),
        ('{"model_type": "llama", "rope_scaling": {"type": "linear"}}', "not a valid llama config: .*factor"),
    ],
)
def test_a_broken_config_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        DecoderSpec.from_config_file(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_config_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        DecoderSpec.from_config_file(tmp_path)


def test_a_long_value_is_shortened_in_the_reason() -> None:
    config = LlamaConfig(hidden_act="a" * 5000)
    assert len(str(is_supported(config))) < 120
