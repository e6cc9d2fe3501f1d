"""Draft models on disk: both forms, what other programs read, and everything that may not fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from outrider import CheckpointError, SamplingParams, load_proposer, load_target
from outrider.draft import Draft
from outrider.formats.hf_config import config_of
from outrider.formats.hf_draft import EMBEDDING, HEAD, MASK, pad_draft, read_draft, widened, write_draft
from outrider.formats.weights import read_weights
from outrider.models.spec import FAMILIES, DecoderSpec, RopeSpec
from outrider.target import Target
from outrider.targets.draft import load_draft
from outrider.targets.native import NativeTarget
from outrider.testing import Oracle, assert_lossless
from outrider.testing.directory import write_tiny_model
from outrider.testing.tiny import tiny_experts, tiny_gemma3, tiny_llama4, tiny_spec, tiny_weights

PUBLISHED = {
    "Qwen2.5-0.5B, padded": Qwen2Config(
        vocab_size=152_064, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32_768, rope_theta=1_000_000.0, rms_norm_eps=1e-6,
        tie_word_embeddings=True, use_sliding_window=False, max_window_layers=21, eos_token_id=151_645,
    ),
    "Llama-3.2-1B": LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131_072, rope_theta=500_000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, eos_token_id=[128_001, 128_008, 128_009],
        rope_scaling={
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "Qwen3-0.6B": Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, rope_theta=1_000_000.0,
        rms_norm_eps=1e-6, tie_word_embeddings=True, eos_token_id=151_645,
    ),
}  # fmt: skip
SHAPES = {
    "Qwen2.5-0.5B, padded": {
        EMBEDDING: (152_064, 896),
        "model.layers.23.self_attn.q_proj.bias": (896,),
        "model.layers.23.self_attn.k_proj.weight": (128, 896),
        "model.layers.0.mlp.down_proj.weight": (896, 4864),
    },
    "Llama-3.2-1B": {
        EMBEDDING: (128_256, 2048),
        "model.layers.15.self_attn.k_proj.weight": (512, 2048),
        "model.layers.0.mlp.gate_proj.weight": (8192, 2048),
    },
    "Qwen3-0.6B": {
        EMBEDDING: (151_936, 1024),
        "model.layers.27.self_attn.q_proj.weight": (2048, 1024),
        "model.layers.27.self_attn.o_proj.weight": (1024, 2048),
        "model.layers.0.self_attn.q_norm.weight": (128,),
    },
}
COUNTS = {"Qwen2.5-0.5B, padded": 290, "Llama-3.2-1B": 146, "Qwen3-0.6B": 310}


@pytest.fixture
def target(tmp_path: Path) -> Target:
    write_tiny_model(tmp_path / "target", seed=0)
    return load_target(str(tmp_path / "target"), dtype="float64")


def slim_tensors(seed: int = 3, mask: bool = False) -> tuple[DecoderSpec, dict[str, torch.Tensor]]:
    spec = tiny_spec(vocab_size=258, max_positions=512, num_layers=1)
    tensors = {name: t for name, t in tiny_weights(spec, seed).items() if name not in (EMBEDDING, HEAD)}
    return spec, tensors | ({MASK: torch.full((16,), 0.5, dtype=torch.float64)} if mask else {})


def write_slim(directory: Path, target: Target, mask_id: int | None = None) -> Path:
    directory.mkdir()
    spec, tensors = slim_tensors(mask=mask_id is not None)
    facts = {} if mask_id is None else {"mask_id": mask_id}
    write_draft(directory, spec, tensors, target, torch.float64, facts, {})
    return directory


def sparse_checkpoint(directory: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file with a true header and no data on disk."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return directory


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_shapes(name: str, tmp_path: Path) -> None:
    spec = DecoderSpec.from_config(PUBLISHED[name])
    (tmp_path / "config.json").write_text(json.dumps(config_of(spec, torch.bfloat16) | {"pard_token": 151_665}))
    found = DecoderSpec.from_config_file(tmp_path)
    assert found == spec
    weights = read_weights(sparse_checkpoint(tmp_path, found.weight_shapes()))
    weights.check(found.weight_shapes())
    assert len(weights) == COUNTS[name]
    for tensor, shape in SHAPES[name].items():
        assert weights.shape(tensor) == shape


@pytest.mark.parametrize(
    "rope",
    [
        RopeSpec(theta=5e5, original_max_position_embeddings=64),
        RopeSpec(type="linear", factor=2.0, original_max_position_embeddings=64),
        RopeSpec(type="dynamic", factor=3.0, original_max_position_embeddings=64),
        RopeSpec(type="llama3", factor=8.0, original_max_position_embeddings=32, low_freq_factor=2.0),
        RopeSpec(type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=16.0, truncate=False),
        RopeSpec(
            type="longrope",
            factor=4.0,
            original_max_position_embeddings=16,
            short_factor=(1.0, 2.0),
            long_factor=(3.0, 4.5),
        ),
    ],
    ids=lambda rope: rope.type,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_is_read_back_as_it_was(family: str, rope: RopeSpec, tmp_path: Path) -> None:
    switches: dict[str, dict[str, Any]] = {
        "llama": {"qkv_bias": True, "o_bias": True},
        "qwen2": {"qkv_bias": True, "windows": (None, 8)},
        "qwen3": {"qk_norm": True, "windows": (None, None)},
        "mistral": {"windows": (8, 8), "eos_ids": ()},
        "phi3": {"windows": (8, 8), "fused": True},
    }
    if family == "phi3" and rope.type not in ("default", "longrope"):
        pytest.skip("its class knows no such scaling")
    if family == "llama4_text" and rope.type in ("dynamic", "yarn", "longrope"):
        pytest.skip("its heads are normalised behind the rotation")
    if family == "gemma3_text" and rope.type == "longrope":
        pytest.skip("no such model is run")
    if family != "phi3":
        rope = replace(rope, partial_rotary_factor=1.0)
    whole = {"gemma3_text": tiny_gemma3, "qwen3_moe": tiny_experts, "llama4_text": tiny_llama4}
    spec = (
        replace(whole[family](max_positions=64), rope=rope)
        if family in whole
        else tiny_spec(family=family, max_positions=64, rope=rope, **switches[family])
    )
    (tmp_path / "config.json").write_text(json.dumps(config_of(spec, torch.float32)))
    assert DecoderSpec.from_config_file(tmp_path) == spec


def test_a_mistral_config_without_windows() -> None:
    spec = tiny_spec(family="mistral", rope=RopeSpec(original_max_position_embeddings=96), windows=(None, None))
    assert DecoderSpec.from_config(MistralConfig.from_dict(config_of(spec, torch.float32))) == spec


def test_a_slim_draft_model_is_the_complete_one(target: Target, tmp_path: Path) -> None:
    slim = load_draft(str(write_slim(tmp_path / "slim", target, mask_id=200)), target)
    spec, tensors = slim_tensors(mask=True)
    shared = target.shared_weights()
    tensors |= {EMBEDDING: shared.embedding_VE.clone(), HEAD: shared.head_VE}
    tensors[EMBEDDING][200] = tensors.pop(MASK)
    (tmp_path / "complete").mkdir()
    write_draft(tmp_path / "complete", spec, tensors, target, torch.float64, {}, {})
    complete = load_draft(str(tmp_path / "complete"), target)
    prompt = [200, 5, 6, 200]
    want = Oracle(complete.model).continuation(prompt, SamplingParams(), 12)
    assert Oracle(slim.model).continuation(prompt, SamplingParams(), 12) == want
    assert slim.num_bytes < complete.num_bytes


def test_what_is_shared_is_not_copied(target: Target, tmp_path: Path) -> None:
    slim = load_draft(str(write_slim(tmp_path / "slim", target)), target)
    assert isinstance(target, NativeTarget)
    assert isinstance(slim.model, NativeTarget)
    assert slim.model.decoder.embed_VE is target.decoder.embed_VE
    assert slim.model.decoder.head is target.decoder.head
    assert slim.num_bytes == sum(layer.num_bytes for layer in slim.model.decoder.layers)


def test_a_mask_leaves_the_targets_embedding_alone(target: Target, tmp_path: Path) -> None:
    before = target.shared_weights().embedding_VE.clone()
    slim = load_draft(str(write_slim(tmp_path / "slim", target, mask_id=9)), target)
    assert torch.equal(target.shared_weights().embedding_VE, before)
    assert isinstance(slim.model, NativeTarget)
    read_3E = slim.model.decoder.embed(torch.tensor([8, 9, 9]))
    assert torch.equal(read_3E[0], before[8])
    assert torch.equal(read_3E[1:], torch.full((2, 16), 0.5, dtype=torch.float64))
    assert slim.num_bytes < before.nbytes


@pytest.mark.parametrize("method", ["draft_model", "pard"])
@pytest.mark.parametrize("backend", ["native", "hf"])
def test_slim_draft_models_draft_for_any_back_end(method: str, backend: Any, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "target")
    target = load_target(str(tmp_path / "target"), dtype="float64", backend=backend)
    directory = write_slim(tmp_path / "slim", target, mask_id=200)
    edit(directory, pard_token=200)
    drafter = load_proposer(method, target, checkpoint=str(directory))
    assert_lossless(target, drafter, [[1, 2, 3], [40]], SamplingParams(max_tokens=10, ignore_eos=True), max_batch=2)


def edit(directory: Path, **keys: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | keys))


def test_another_target_is_refused(target: Target, tmp_path: Path) -> None:
    directory = write_slim(tmp_path / "slim", target)
    write_tiny_model(tmp_path / "other", seed=1)
    other = load_target(str(tmp_path / "other"), dtype="float64")
    with pytest.raises(
        CheckpointError, match=r"was trained for .*target, whose embedding differs from that of .*other"
    ):
        load_draft(str(directory), other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "model.norm.weight"}, "the checkpoint has no tensor model.norm.weight"),
        ({"add": "model.layers.5.mlp.up_proj.weight"}, "holds tensor model.layers.5.mlp.up_proj.weight, which this"),
        ({"reshape": "model.norm.weight"}, r"tensor model.norm.weight .* has shape \(15,\), expected \(16,\)"),
        ({"add": MASK}, "holds tensor model.mask_embedding, which this model does not have"),
        ({"facts": {"mask_id": 7}}, "the checkpoint has no tensor model.mask_embedding"),
        ({"facts": {"mask_id": 258}}, "mask_id 258, outside its 258 tokens"),
        ({"facts": {"shares": ["embedding"]}}, r"shares \['embedding'\] with its target; only"),
        ({"keys": {"vocab_size": 300}}, "has vocab_size 300 but .*, whose embedding and head it shares, has 258"),
        ({"keys": {"hidden_size": 32}}, "has hidden_size 32 but .* has 16"),
    ],
)
def test_what_does_not_fit_is_named(target: Target, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    directory = write_slim(tmp_path / "slim", target)
    tensors = load_file(directory / "model.safetensors")
    tensors.pop(change.get("drop", ""), None)
    if "add" in change:
        tensors[change["add"]] = torch.zeros(16)
    if "reshape" in change:
        tensors[change["reshape"]] = torch.zeros(15)
    save_file(tensors, directory / "model.safetensors")
    facts = json.loads((directory / "config.json").read_text())["outrider"]
    edit(directory, outrider=facts | change.get("facts", {}), **change.get("keys", {}))
    with pytest.raises(CheckpointError, match=message):
        load_draft(str(directory), target)


@pytest.mark.parametrize("tied", [False, True])
def test_the_complete_form_loads_in_transformers(target: Target, tmp_path: Path, tied: bool) -> None:
    spec = tiny_spec(vocab_size=258, max_positions=512, tie_word_embeddings=tied)
    write_draft(tmp_path, spec, tiny_weights(spec, 4), target, torch.float64, {}, {"pard_token": 255})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ours = load_draft(str(tmp_path), target).model
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    want_V = model(torch.tensor([text])).logits[0, -1]
    session = ours.open(ours.plan(1, 64, 4))
    session.prefill([0], [text[:-1]])
    found_V = session.forward([0], [text[-1]], Draft.empty(1)).logits_BMV[0][0]
    assert (want_V - found_V).abs().max() < 1e-5  # transformers computes rotary tables and norms in fp32
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "target/tokenizer.json").read_bytes()


def wide_target() -> Target:
    spec = tiny_spec(vocab_size=264, max_positions=512)
    return NativeTarget.from_weights(spec, tiny_weights(spec, 0), "wide", torch.float64)


def test_a_vocabulary_is_padded_to_the_targets(tmp_path: Path) -> None:
    target = wide_target()
    write_tiny_model(tmp_path / "draft")
    with pytest.raises(CheckpointError, match=r"has 258 tokens but target wide has 264; pad it to the target's with"):
        load_draft(str(tmp_path / "draft"), target)
    (tmp_path / "padded").mkdir()
    pad_draft(str(tmp_path / "draft"), tmp_path / "padded", target)
    padded = load_draft(str(tmp_path / "padded"), target)
    assert padded.model.spec.vocab_size == 264
    own = load_target(str(tmp_path / "draft"), dtype="float64")
    assert Oracle(padded.model).continuation([1, 2], SamplingParams(), 20) == Oracle(own).continuation(
        [1, 2], SamplingParams(), 20
    )


def test_new_rows_are_the_mean_and_never_the_most_probable() -> None:
    head_VE = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    wide = widened({HEAD: head_VE, "model.norm.weight": torch.ones(2)}, 4)
    assert wide[HEAD].tolist() == [[1.0, 0.0], [0.0, 3.0], [0.5, 1.5], [0.5, 1.5]]
    assert wide["model.norm.weight"].tolist() == [1.0, 1.0]


def test_more_rows_than_the_target_and_slim_ones_are_not_padded(target: Target, tmp_path: Path) -> None:
    spec = tiny_spec(vocab_size=264, max_positions=512)
    (tmp_path / "wide").mkdir()
    write_draft(tmp_path / "wide", spec, tiny_weights(spec, 0), wide_target(), torch.float64, {}, {})
    with pytest.raises(CheckpointError, match=r"has 264 tokens but target .* has 258; a draft model must share"):
        read_draft(str(tmp_path / "wide"), target)
    with pytest.raises(CheckpointError, match="shares its target's embedding, which has every row already"):
        pad_draft(str(write_slim(tmp_path / "slim", target)), tmp_path / "wide", target)
