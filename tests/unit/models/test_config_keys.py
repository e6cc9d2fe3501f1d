"""Every key of a config that changes the numbers is honoured as `transformers` does, or refused by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen3Config

import outrider
from outrider.errors import CheckpointError
from outrider.models.config_keys import check_types
from outrider.records.json_fields import Fields
from outrider.sampling import SamplingParams

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_theta": 10_000.0,
}
PROMPT = [3 + place * 7 % 50 for place in range(40)]


def write(directory: Path, family: str = "llama", **changes: Any) -> Path:
    """Write a random model whose config has these keys on top of its own."""
    config: PreTrainedConfig = {"qwen3": Qwen3Config}.get(family, outrider.models.spec.FAMILIES[family])(**SIZES)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    file = directory / "config.json"
    content = json.loads(file.read_text()) | {"rope_theta": 10_000.0} | changes
    if "rope_parameters" not in changes:
        content.pop("rope_parameters", None)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return directory


def decoded(directory: Path, backend: str = "native") -> list[int]:
    target = outrider.load_target(str(directory), dtype="float32", device="cpu", backend=backend)
    engine = outrider.Engine(target, outrider.load_proposer("none", target))
    return list(engine.generate([PROMPT], SamplingParams(max_tokens=12, ignore_eos=True))[0].tokens)


def wanted(directory: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    out = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    return out[0, len(PROMPT) :].tolist()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
HONOURED: dict[str, dict[str, Any]] = {
    "theta-outside": {"rope_theta": 500.0},
    "theta-inside": {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "theta-in-scaling": {"rope_theta": ..., "rope_scaling": {"type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    "linear-type": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "linear-rope-type": {"rope_scaling": {"rope_type": "linear", "factor": 3}},
    "linear-parameters": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 3.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn-mscale": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    "yarn-one-mscale": {"rope_scaling": YARN | {"mscale": 0.7}},
    "yarn-attention": {"rope_scaling": YARN | {"attention_factor": 0.8}},
    "yarn-betas": {"rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2.0}},
    "yarn-truncate": {"rope_scaling": YARN | {"truncate": False}},
    "yarn-default-context": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn-context-outside": {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "both-agree": {
        "rope_scaling": {"type": "linear", "factor": 3.0},
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0},
    },
}


@pytest.mark.parametrize("name", HONOURED)
def test_rotary_settings_are_honoured_in_every_spelling(name: str, tmp_path: Path) -> None:
    plain = decoded(write(tmp_path / "plain"))
    directory = write(tmp_path / "model", **HONOURED[name])
    found = decoded(directory)
    assert found == wanted(directory)
    assert found != plain or name == "dynamic"  # which changes nothing within its limit


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "type-twice": (
        {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
        "rope_type 'yarn' but type",
    ),
    "no-type": ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling\.factor is 2\.0 but there is no rope_type"),
    "no-factor": ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor is missing"),
    "unknown-key": ({"rope_scaling": YARN | {"attn_factor": 0.5}}, r"rope_scaling\.attn_factor is 0\.5"),
    "alpha": ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 9}}, r"rope_scaling\.alpha is 9"),
    "theta-twice": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        "rope_theta stands there as 500 and as 10000",
    ),
    "sections-disagree": (
        {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        r"rope_scaling\.factor is 3\.0 but rope_parameters\.factor is 2\.0",
    ),
    "per-layer-type": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        r"rope_parameters\.full_attention is a section of its own",
    ),
    "nan": ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, r"rope_scaling\.factor is NaN"),
    "frequencies": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 5.0, "high_freq_factor": 4.0}},
        r"low_freq_factor 5 must not be above high_freq_factor 4",
    ),
    "granite": ({"attention_multiplier": 0.5}, "attention_multiplier is 0.5, which a llama model does not obey"),
    "logits": ({"logits_scaling": 8.0}, "logits_scaling is 8.0"),
    "embedding": ({"embedding_multiplier": 12}, "embedding_multiplier is 12"),
    "residual": ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
    "gemma": ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
    "softcap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    "experts": ({"num_local_experts": 8}, "num_local_experts is 8"),
    "window": ({"sliding_window": 16}, "sliding_window is 16"),
    "clip": ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
    "normless": ({"use_qk_norm": True}, "use_qk_norm is true"),
    "layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
    "mlx": ({"quantization": {"bits": 4}}, "quantization is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_numbers_unheard_is_refused_by_name(name: str, tmp_path: Path) -> None:
    changes, sentence = REFUSED[name]
    directory = write(tmp_path / "model", **changes)
    for backend in ("auto", "native"):
        with pytest.raises(CheckpointError, match=sentence):
            decoded(directory, backend)


HARMLESS: dict[str, dict[str, Any]] = {
    "neutral": {"attention_multiplier": 8**-0.5, "logits_scaling": 1.0, "residual_multiplier": 1, "clip_qkv": None},
    "smollm2": {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": "x"}},
    "training": {"neftune_noise_alpha": 5.0, "unsloth_version": "2025", "z_loss": 0.1},
    "unused": {"use_sliding_window": False, "sliding_window": 16, "layer_types": ["full_attention"] * 2},
    "section": {"rope_scaling": {"rope_type": "default", "finetuned": True, "attn_factor": 1.0}},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_read(name: str, tmp_path: Path) -> None:
    directory = write(tmp_path / "model", **HARMLESS[name])
    assert decoded(directory) == wanted(directory)


def test_a_quantized_family_member_is_handed_to_transformers_which_says_why(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", quantization_config={"quant_method": "aqlm"})
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        decoded(directory, "auto")
    with pytest.raises(CheckpointError, match=r"quantised by 'aqlm', which is not read .the original checkpoint runs"):
        decoded(directory, "native")


def test_a_config_that_promises_quantised_weights_must_keep_it(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="no quantised matrix; remove that section"):
        decoded(directory, "auto")


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size", "rms_norm_eps", "eos_token_id"])
@pytest.mark.parametrize("value", ["32", [], {}, -1, 10**30, 1.5, True, float("nan")])
def test_values_of_other_types_are_named(key: str, value: Any, tmp_path: Path) -> None:
    directory = write(tmp_path / "model", **{key: value})
    if (key, value) in (("eos_token_id", -1), ("eos_token_id", []), ("rms_norm_eps", 1.5)):
        return
    with pytest.raises(CheckpointError, match=rf"config(\.json)?: {key} is "):
        decoded(directory)


def test_a_head_may_leave_its_shape_out() -> None:
    check_types(Fields({"rope_theta": 500.0}, "a head"), partial=True)
    with pytest.raises(CheckpointError, match="vocab_size is missing"):
        check_types(Fields({"rope_theta": 500.0}, "a model"))


PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "model_type": "llama",
        "attention_bias": False,
        "initializer_range": 0.041666666666666664,
        "is_llama_config": True,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "Llama-3.1-8B": {
        "model_type": "llama",
        "eos_token_id": [128001, 128008, 128009],
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "max_window_layers": 28,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "use_mrope": False,
        "rope_theta": 1000000.0,
    },
    "Qwen2.5-7B-1M-yarn": {
        "model_type": "qwen2",
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "max_window_layers": 28,
        "sliding_window": None,
        "rope_scaling": None,
        "rope_theta": 1000000,
    },
    "Mistral-7B-v0.1": {"model_type": "mistral", "sliding_window": 4096, "rope_theta": 10000.0},
    "Vicuna": {"model_type": "llama", "max_sequence_length": 2048, "_name_or_path": "x", "pad_token_id": -1},
    "fine-tuned": {
        "model_type": "llama",
        "unsloth_fixed": True,
        "unsloth_version": "2025.3.19",
        "_attn_implementation_autoset": True,
        "neftune_noise_alpha": 5,
        "use_flash_attention_2": True,
        "original_max_position_embeddings": 2048,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name: str, tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if key not in ("head_dim", "rope_theta")}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(sizes | {"hidden_act": "silu", "torch_dtype": "bfloat16"} | PUBLISHED[name]))
    assert outrider.models.spec.DecoderSpec.from_config_file(tmp_path).num_layers == 2
