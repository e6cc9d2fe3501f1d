"""Prediction modules on disk: published names and shapes, round trips, and precise refusals."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.mtp import FINAL_NORM, block_spec, module_shapes, open_mtp, read_mtp, write_mtp
from outrider.formats.store import provenance
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.proposers.mtp import random_checkpoint
from outrider.targets import load_target
from outrider.targets.native import NativeTarget
from outrider.testing import tiny_target
from outrider.testing.directory import write_tiny_model
from outrider.testing.tiny import tiny_spec

TARGET = tiny_target(0)
LAYER = {
    "hidden_layernorm.weight": "E",
    "token_layernorm.weight": "E",
    "final_layernorm.weight": "E",
    "input_proj.weight": "E2E",
    "input_layernorm.weight": "E",
    "post_attention_layernorm.weight": "E",
    "self_attn.q_proj.weight": "QE",
    "self_attn.q_proj.bias": "Q",
    "self_attn.k_proj.weight": "KE",
    "self_attn.k_proj.bias": "K",
    "self_attn.v_proj.weight": "KE",
    "self_attn.v_proj.bias": "K",
    "self_attn.o_proj.weight": "EQ",
    "mlp.gate_proj.weight": "IE",
    "mlp.up_proj.weight": "IE",
    "mlp.down_proj.weight": "EI",
}
"""The tensors of one module as published."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "mimo-7b": {"E": 4096, "Q": 4096, "K": 1024, "I": 11008, "heads": 32, "layers": 36, "vocab": 151680},
    "qwen2.5-7b": {"E": 3584, "Q": 3584, "K": 512, "I": 18944, "heads": 28, "layers": 28, "vocab": 152064},
    "qwen3-8b": {"E": 4096, "Q": 4096, "K": 1024, "I": 12288, "heads": 32, "layers": 36, "vocab": 151936},
    "llama-3.1-8b": {"E": 4096, "Q": 4096, "K": 1024, "I": 14336, "heads": 32, "layers": 32, "vocab": 128256},
}


def sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A bf16 safetensors file of the right size that holds a header and a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(torch.tensor(shape).prod())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def published(name: str, num_modules: int) -> dict[str, tuple[int, ...]]:
    size = PUBLISHED[name]
    shape_of = {
        "E": (size["E"],),
        "E2E": (size["E"], 2 * size["E"]),
        "Q": (size["Q"],),
        "K": (size["K"],),
        "QE": (size["Q"], size["E"]),
        "KE": (size["K"], size["E"]),
        "EQ": (size["E"], size["Q"]),
        "IE": (size["I"], size["E"]),
        "EI": (size["E"], size["I"]),
    }
    return {
        f"model.mtp_layers.{index}.{part}": shape_of[kind]
        for index in range(num_modules)
        for part, kind in LAYER.items()
    }


def published_config(name: str, num_modules: int, **changes: Any) -> dict[str, Any]:
    size = PUBLISHED[name]
    config = {
        "architectures": ["MiMoForCausalLM"],
        "model_type": "mimo",
        "attention_bias": True,
        "hidden_act": "silu",
        "hidden_size": size["E"],
        "intermediate_size": size["I"],
        "max_position_embeddings": 32768,
        "num_attention_heads": size["heads"],
        "num_hidden_layers": size["layers"],
        "num_key_value_heads": size["K"] * size["heads"] // size["Q"],
        "num_nextn_predict_layers": num_modules,
        "rms_norm_eps": 1e-05,
        "rope_theta": 640000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": size["vocab"],
    }
    return config | changes


@pytest.mark.parametrize("model_type", ["mimo", "qwen2"])
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("whole", [False, True])
def test_published_sizes_open(name: str, whole: bool, model_type: str, tmp_path: Path) -> None:
    """From headers alone; with `whole`, the modules lie among the target's own layers."""
    shapes = published(name, 1) | {FINAL_NORM: (PUBLISHED[name]["E"],)}
    if whole:
        shapes |= {f"model.layers.{layer}.input_layernorm.weight": (PUBLISHED[name]["E"],) for layer in range(3)}
        shapes |= {"model.embed_tokens.weight": (8, PUBLISHED[name]["E"]), "lm_head.weight": (8, 4)}
    sparse(tmp_path / "model.safetensors", shapes)
    config = published_config(name, 1, model_type=model_type)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint = open_mtp(tmp_path)
    assert checkpoint.shapes == published(name, 1) | {FINAL_NORM: (PUBLISHED[name]["E"],)}
    assert checkpoint.state == "residual"
    assert checkpoint.spec.rope == RopeSpec(theta=640000, original_max_position_embeddings=32768)
    assert checkpoint.spec.num_layers == PUBLISHED[name]["layers"]


def test_names_of_two_modules() -> None:
    spec = replace(block_spec(TARGET), num_heads=4)
    assert set(module_shapes(spec, 2)) == {f"model.mtp_layers.{i}.{part}" for i in range(2) for part in LAYER}


@pytest.mark.parametrize("rope", [RopeSpec(), RopeSpec(type="yarn", factor=4.0, original_max_position_embeddings=24)])
@pytest.mark.parametrize("state", ["residual", "normed"])
def test_a_round_trip_gives_equal_bytes(state: Any, rope: RopeSpec, tmp_path: Path) -> None:
    target = tiny_target(0, rope=rope, qk_norm=True)
    facts = provenance(target, state=state, num_depths=4)
    made = replace(random_checkpoint(target, 2, state, seed=1), provenance=facts)
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    write_mtp(first, made, torch.bfloat16)
    read = read_mtp(first, target)
    assert read.spec == replace(made.spec, rope=read.spec.rope)
    assert (read.spec.rope.type, read.spec.rope.factor) == (rope.type, rope.factor)
    assert read.provenance == facts
    write_mtp(second, read, torch.bfloat16)
    for file in ("config.json", "model.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_the_config_is_what_vllm_reads(tmp_path: Path) -> None:
    write_mtp(tmp_path, random_checkpoint(TARGET, 2, "residual", seed=1), torch.bfloat16)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["MiMoForCausalLM"]
    assert config["num_nextn_predict_layers"] == 2
    needed = published_config("mimo-7b", 2).keys() - {"torch_dtype"}
    assert needed <= config.keys()
    assert config["dtype"] == "bfloat16"


def test_modules_inside_the_target_directory(tmp_path: Path) -> None:
    """The target's own tensors are left alone; the modules are read with the target's final norm."""
    plain, whole = write_tiny_model(tmp_path / "plain"), write_tiny_model(tmp_path / "whole")
    target = load_target(str(plain), dtype="float64")
    made = random_checkpoint(target, 1, "residual", seed=2)
    modules = tmp_path / "modules"
    modules.mkdir()
    write_mtp(modules, made, torch.float64)
    tensors = load_file(whole / "model.safetensors") | load_file(modules / "model.safetensors")
    save_file(tensors, whole / "model.safetensors")
    (whole / "config.json").write_text((modules / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    read = read_mtp(whole, target)
    assert set(read.tensors) == set(made.tensors)
    assert all(torch.equal(read.tensors[name], made.tensors[name]) for name in made.tensors)


def spoil(directory: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> None:
    """Change a checkpoint in place; None removes a tensor."""
    held = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor is None:
            del held[name]
        else:
            held[name] = tensor
    save_file(held, directory / "model.safetensors")
    if config is not None:
        file = directory / "config.json"
        known = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(known | config), encoding="utf-8")


BIAS = "model.mtp_layers.0.self_attn.k_proj.bias"


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (None, {BIAS: None}, f"has no tensor {BIAS}"),
        (None, {BIAS: torch.zeros(7)}, rf"tensor {BIAS} in .* has shape (7,), expected (8,)"),
        (None, {"model.mtp_layers.0.fc.weight": torch.zeros(1)}, "holds tensor model.mtp_layers.0.fc.weight"),
        (None, {FINAL_NORM: None}, f"has no tensor {FINAL_NORM}"),
        ({"num_nextn_predict_layers": 2}, {}, "has no tensor model.mtp_layers.1.input_layernorm.weight"),
        (
            {"num_nextn_predict_layers": None},
            {},
            "num_nextn_predict_layers None, so it holds no prediction modules",
        ),
        ({"model_type": "deepseek_v3"}, {}, "has model_type 'deepseek_v3'; known: mimo, qwen2"),
        ({"hidden_size": "wide"}, {}, "is not a valid qwen2 config: hidden_size is 'wide' but must be"),
        ({"outrider": {"state": "cooked"}}, {}, "has state 'cooked'"),
        ({"num_hidden_layers": 9}, {}, "made for a target with num_hidden_layers 9, but tiny-0 has 2"),
        ({"vocab_size": 30}, {}, "made for a target with vocab_size 30, but tiny-0 has 31"),
    ],
)
def test_refusals(
    config: dict[str, Any] | None, tensors: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    write_mtp(tmp_path, random_checkpoint(TARGET, 1, "residual", seed=1), torch.float64)
    read_mtp(tmp_path, TARGET)
    spoil(tmp_path, config, **tensors)
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(CheckpointError, match=pattern):
        read_mtp(tmp_path, TARGET)


def test_another_target_is_refused(tmp_path: Path) -> None:
    facts = provenance(TARGET, state="normed")
    made = replace(random_checkpoint(TARGET, 1, "normed", seed=1), provenance=facts)
    write_mtp(tmp_path, made, torch.float64)
    with pytest.raises(CheckpointError, match="was trained for tiny-0, whose embedding differs from that of tiny-1"):
        read_mtp(tmp_path, tiny_target(1))


def test_a_target_outside_the_family_is_refused(tiny_gpt2_target: Any) -> None:
    with pytest.raises(ConfigError, match="target of the Llama family; tiny-gpt2 is none"):
        block_spec(tiny_gpt2_target)


def test_the_block_has_the_sizes_of_the_target() -> None:
    spec = tiny_spec(family="qwen3", qk_norm=True, windows=(4, None))
    target = NativeTarget.from_weights(spec, _weights(spec), "tiny", torch.float64)
    block = block_spec(target)
    assert (block.qkv_bias, block.o_bias, block.qk_norm, block.windows) == (True, False, False, (None, None))
    assert (block.num_heads, block.head_dim, block.num_layers) == (spec.num_heads, spec.head_dim, spec.num_layers)


def _weights(spec: DecoderSpec) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape, dtype=torch.float64) for name, shape in spec.weight_shapes().items()}
