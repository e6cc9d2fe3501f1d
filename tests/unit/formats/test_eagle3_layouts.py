"""EAGLE-3 heads as others publish them: spellings, configs that contradict their tensors, and which states are read."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from outrider import CheckpointError, Engine, load_proposer, load_target
from outrider.draft import Draft
from outrider.formats.eagle3 import Eagle3Checkpoint, read_eagle3, write_native
from outrider.formats.eagle3_tensors import column_ids
from outrider.proposers.eagle3 import Eagle3Config, Eagle3Proposer, head_of, random_checkpoint
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.testing import tiny_target
from outrider.testing.directory import write_tiny_model

NUM_LAYERS = 6
TARGET = tiny_target(num_layers=NUM_LAYERS)
VOCAB = TARGET.spec.vocab_size
Tensors = dict[str, Tensor]


def plain(num_feature_layers: int = 3, columns: int = 20) -> Eagle3Checkpoint:
    """A head without variants whose layers are the default ones, or the first ones."""
    checkpoint = random_checkpoint(TARGET, 3)
    assert checkpoint.spec.norm_before_residual is False
    width = checkpoint.spec.layer.hidden_size
    spec = replace(checkpoint.spec, fc_norm=False, norm_before_fc=False, norm_output=False, draft_vocab_size=columns)
    spec = replace(spec, layer_ids=None if num_feature_layers == 3 else tuple(range(num_feature_layers)))
    generator = torch.Generator().manual_seed(7)
    tensors = {name: checkpoint.tensors[name] for name in spec.shapes()}
    tensors["fc.weight"] = torch.randn(width, spec.features, generator=generator, dtype=torch.float64)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:columns]
    ids_K = torch.randperm(VOCAB, generator=generator)[:columns].sort().values
    return replace(checkpoint, spec=spec, tensors=tensors, ids_K=ids_K)


def stored(
    directory: Path, checkpoint: Eagle3Checkpoint, config: Mapping[str, Any], change: Callable[[Tensors], object]
) -> Path:
    """Write a head with other keys (`...` removes one) and other tensors."""
    directory.mkdir()
    write_native(directory, checkpoint, torch.float64)
    file = directory / "config.json"
    keys = {key: value for key, value in (json.loads(file.read_text()) | dict(config)).items() if value is not ...}
    file.write_text(json.dumps(keys))
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def untouched(tensors: Tensors) -> None:
    """Leave the tensors as they are."""


def renamed(new: Callable[[str], str]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[new(name)] = tensors.pop(name)

    return change


def with_marks(dtype: torch.dtype) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update(t2d=tensors["t2d"].to(dtype))


def absolute(tensors: Tensors) -> None:
    tensors["d2t"] += torch.arange(len(tensors["d2t"]))


SAME: dict[str, tuple[dict[str, Any], Callable[[Tensors], object]]] = {
    "layers of the target's config": ({"num_hidden_layers": 40, "architectures": ["LlamaForCausalLM"]}, untouched),
    "no draft_vocab_size": ({"draft_vocab_size": ...}, untouched),
    "another draft_vocab_size": ({"draft_vocab_size": VOCAB}, untouched),
    "columns in the place of the vocabulary": ({"vocab_size": 20}, untouched),
    "no vocab_size": ({"vocab_size": ...}, untouched),
    "layer ids []": ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}, untouched),
    "layer ids null": ({"eagle_aux_hidden_state_layer_ids": None}, untouched),
    "a count that the weights contradict": ({"num_aux_hidden_states": 4}, untouched),
    "fused although it says not": ({"eagle_config": {"use_aux_hidden_state": False}}, untouched),
    "no target_hidden_size": ({"target_hidden_size": None}, untouched),
    "another intermediate size": ({"intermediate_size": 9999}, untouched),
    "no head_dim": ({"head_dim": ...}, untouched),
    "no model_type": ({"model_type": ...}, untouched),
    "model_type qwen2, whose layers have biases": ({"model_type": "qwen2", "attention_bias": ...}, untouched),
    "biases that are not stored": ({"attention_bias": True}, untouched),
    "an unused norm of the verifier": ({}, lambda tensors: tensors.update({"verifier_norm.weight": torch.ones(16)})),
    "rotary frequencies": (
        {},
        lambda tensors: tensors.update({"midlayer.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    ),
    "layers.0.": ({}, renamed(lambda name: name.replace("midlayer.", "layers.0."))),
    "model. everywhere": ({}, renamed(lambda name: f"model.{name}")),
    "draft_model.model.": ({}, renamed(lambda name: f"draft_model.model.{name}")),
    "model.layers.0.": ({}, renamed(lambda name: f"model.{name}".replace("midlayer.", "layers.0."))),
    "token ids in d2t": ({}, absolute),
    "marks as uint8": ({}, with_marks(torch.uint8)),
    "marks as int64": ({}, with_marks(torch.int64)),
    "marks unset": ({}, lambda tensors: tensors["t2d"].zero_()),
    "d2t unset": ({}, lambda tensors: tensors["d2t"].zero_()),
    "d2t as int32": ({}, lambda tensors: tensors.update(d2t=tensors["d2t"].to(torch.int32))),
    "no marks": ({}, lambda tensors: tensors.pop("t2d")),
}


@pytest.mark.parametrize("layout", SAME)
def test_other_layouts_are_the_same_head(tmp_path: Path, layout: str) -> None:
    config, change = SAME[layout]
    checkpoint = plain()
    read = read_eagle3(stored(tmp_path / "head", checkpoint, config, change), TARGET)
    assert torch.equal(read.ids_K, checkpoint.ids_K)
    assert {name: tensor.tolist() for name, tensor in read.tensors.items()} == {
        name: tensor.tolist() for name, tensor in checkpoint.tensors.items()
    }
    assert replace(read.spec, layer=checkpoint.spec.layer) == checkpoint.spec
    assert replace(read.spec.layer, family="llama", eos_ids=()) == replace(checkpoint.spec.layer, eos_ids=())


def test_biases_and_norms_that_are_stored_are_used_although_the_config_is_silent(tmp_path: Path) -> None:
    extra = {
        f"midlayer.self_attn.{part}_proj.bias": torch.ones(rows) for part, rows in zip("qkv", (16, 16, 16), strict=True)
    }
    extra |= {f"midlayer.self_attn.{part}_norm.weight": torch.ones(8) for part in "qk"}
    checkpoint = plain()
    kv = checkpoint.spec.layer.num_kv_heads * 8
    extra |= {f"midlayer.self_attn.{part}_proj.bias": torch.ones(kv) for part in "kv"}
    extra |= {"input_norm.weight": torch.ones(48)} | {
        f"fc_norm.{feature_layer}.weight": torch.ones(16) for feature_layer in range(3)
    }
    read = read_eagle3(stored(tmp_path / "head", checkpoint, {}, lambda tensors: tensors.update(extra)), TARGET)
    assert (read.spec.layer.qkv_bias, read.spec.layer.qk_norm) == (True, True)
    assert (read.spec.norm_before_fc, read.spec.fc_norm) == (True, True)
    assert set(extra) <= set(read.tensors)


@pytest.mark.parametrize(
    ("config", "num_feature_layers", "feature_layers"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 3, 5]}, 4, (1, 2, 3, 5)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 4, 6]}}, 3, (2, 4, 7)),
        ({"aux_hidden_state_layer_ids": [0, 5]}, 2, (0, 5)),
        ({"target_layer_ids": [0, 1, 4]}, 3, (1, 2, 5)),
        ({"target_layer_ids": [1, 2, 3, 4, 5]}, 5, (2, 3, 4, 5, 6)),
        ({}, 3, (2, 3, 3)),
    ],
)
def test_which_states_are_read(
    tmp_path: Path, config: dict[str, Any], num_feature_layers: int, feature_layers: tuple[int, ...]
) -> None:
    bare = {"eagle_config": ..., "num_aux_hidden_states": ...}
    read = read_eagle3(stored(tmp_path / "head", plain(num_feature_layers), bare | config, untouched), TARGET)
    assert read.spec.feature_layers(NUM_LAYERS) == feature_layers
    (tmp_path / "again").mkdir()
    write_native(tmp_path / "again", read, torch.float64)
    assert read_eagle3(tmp_path / "again", TARGET).spec == read.spec


def test_a_head_that_fuses_nothing_reads_the_final_state(tmp_path: Path) -> None:
    config = {"eagle_config": {"use_aux_hidden_state": False}}
    read = read_eagle3(stored(tmp_path / "head", plain(), config, lambda tensors: tensors.pop("fc.weight")), TARGET)
    assert (read.spec.feature_layers(NUM_LAYERS), read.spec.features) == ((NUM_LAYERS,), 16)
    head = head_of(read, TARGET)
    states_RE = torch.randn(3, 16, dtype=torch.float64)
    assert torch.equal(head.fuse(states_RE), states_RE)
    prompts = [[5, 7, 9], [1, 2]]
    drafted = Engine(TARGET, Eagle3Proposer(head, Eagle3Config(checkpoint="")), max_batch=2)
    want = Engine(TARGET, NoProposer(), max_batch=2).generate(prompts, SamplingParams(max_tokens=12))
    assert [one.tokens for one in drafted.generate(prompts, SamplingParams(max_tokens=12))] == [
        one.tokens for one in want
    ]
    (tmp_path / "again").mkdir()
    write_native(tmp_path / "again", read, torch.float64)
    assert read_eagle3(tmp_path / "again", TARGET).spec == read.spec


def test_features_behind_the_last_layer_are_those_of_transformers(tmp_path: Path) -> None:
    """Feature layer n is `hidden_states[n]`, behind the final norm; feature layer n + 1 is what enters that norm."""
    directory = write_tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    entering: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    ids = [5, 77, 130, 9, 200]
    with torch.no_grad():
        want = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    target = load_target(str(directory), dtype="float64")
    num_layers = target.spec.num_layers
    session = target.open(target.plan(1, 32, 8), feature_layers=(1, num_layers, num_layers + 1))
    [features_TF] = session.prefill([0], [ids[:-1]])
    last_BMF = session.forward([0], [ids[-1]], Draft.empty(1)).features_BMF
    assert features_TF is not None
    assert last_BMF is not None
    got = torch.cat([features_TF, last_BMF[0]]).chunk(3, dim=-1)
    for one, other in zip(got, (want[1], want[num_layers], entering[0]), strict=True):
        assert torch.allclose(one, other[0], atol=1e-10)
    slow = load_target(str(directory), dtype="float64", backend="hf")
    from outrider import ConfigError

    with pytest.raises(ConfigError, match="before the final norm, which only targets on the native decoder give"):
        slow.open(slow.plan(1, 32, 8), feature_layers=(num_layers + 1,))


@pytest.mark.parametrize(
    ("d2t", "t2d", "ids"),
    [
        ([0, 4, 4], None, [0, 5, 6]),
        ([0, 5, 6], [0, 5, 6], [0, 5, 6]),
        ([0, 5, 6], None, [0, 6, 8]),
        ([0, 5, 8], None, [0, 5, 8]),
        ([0, 0, 0], [2, 5, 6], [2, 5, 6]),
        ([0, 0, 0], [0, 1, 2], [0, 1, 2]),
        ([0, 0, 0], [], [0, 1, 2]),
        ([6, 4, -2], [0, 5, 6], [6, 5, 0]),
    ],
)
def test_the_map_of_columns(d2t: list[int], t2d: list[int] | None, ids: list[int]) -> None:
    marks_V = None if t2d is None else torch.isin(torch.arange(9), torch.tensor(t2d, dtype=torch.int64))
    assert column_ids(torch.tensor(d2t), marks_V, 3, 9, "head").tolist() == ids


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Tensors], object], str]] = {
    "half a second layer": (
        {"num_hidden_layers": 2},
        lambda tensors: tensors.update({"layers.1.hidden_norm.weight": torch.ones(16)}),
        "no tensor layers.1.post_attention_layernorm.weight",
    ),
    "more layers than the config says": (
        {},
        lambda tensors: tensors.update({"layers.2.input_layernorm.weight": torch.ones(16)}),
        "has num_hidden_layers 1, but its tensors are of 3 layers",
    ),
    "both norms of a further layer": (
        {},
        lambda tensors: tensors.update(
            {f"layers.1.{name}.weight": torch.ones(16) for name in ("hidden_norm", "input_layernorm")}
        ),
        "layers.1.hidden_norm.weight and layers.1.input_layernorm.weight, which are one tensor; drop one",
    ),
    "one tensor twice": (
        {},
        lambda tensors: tensors.update({"layers.0.hidden_norm.weight": torch.ones(16)}),
        "layers.0.hidden_norm.weight .* are one tensor; drop one|midlayer.hidden_norm.weight and layers.0",
    ),
    "more states than layers are named": (
        {"eagle_aux_hidden_state_layer_ids": [1, 2]},
        untouched,
        "names 2 layers, but its fc.weight fuses 3 states",
    ),
    "states without names": (
        {},
        lambda tensors: tensors.update({"fc.weight": torch.zeros(16, 64)}),
        "fuses 4 states but does not name their layers; add eagle_aux_hidden_state_layer_ids",
    ),
    "a fusion of another width": (
        {"target_hidden_size": None},
        lambda tensors: tensors.update({"fc.weight": torch.zeros(16, 40)}),
        "made for a target with hidden size|no multiple of the target's hidden size 16",
    ),
    "biases in the MLP": (
        {},
        lambda tensors: tensors.update({"midlayer.mlp.up_proj.bias": torch.zeros(32)}),
        "cannot be run: its MLP has biases",
    ),
    "a layer behind the target's last": ({"target_layer_ids": [0, 1, 6]}, untouched, "state before layer 7"),
    "marks of another head": (
        {},
        lambda tensors: tensors.update(t2d=~tensors["t2d"]),
        "t2d of .* marks other tokens than d2t",
    ),
    "maps of fractions": (
        {},
        lambda tensors: tensors.update(d2t=tensors["d2t"].to(torch.float32)),
        "tensor d2t in .* is stored as F32, not as whole numbers",
    ),
    "more columns than tokens": (
        {},
        lambda tensors: tensors.update({"lm_head.weight": torch.zeros(99, 16), "d2t": torch.zeros(99).long()}),
        "has 99 columns, more than its 31 tokens",
    ),
    "no fusion, unannounced": ({}, lambda tensors: tensors.pop("fc.weight"), "no tensor fc.weight"),
    "masked features without a token": (
        {},
        lambda tensors: tensors.update(mask_hidden=torch.zeros(1, 1, 48)),
        "names no token for the slots of mask_hidden; add mask_token_id",
    ),
    "masked features of another width": (
        {"pard_token": 3},
        lambda tensors: tensors.update(mask_hidden=torch.zeros(1, 1, 32)),
        r"mask_hidden .* has shape \(1, 1, 32\), expected \(1, 1, 48\)",
    ),
    "a mask outside the vocabulary": (
        {"mask_token_id": VOCAB},
        lambda tensors: tensors.update(mask_hidden=torch.zeros(1, 1, 48)),
        "names mask token 31, which is not one of its 31 tokens",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    config, change, message = REFUSED[fault]
    with pytest.raises(CheckpointError, match=message):
        read_eagle3(stored(tmp_path / "head", plain(), config, change), TARGET)


def test_a_layout_is_loaded_end_to_end(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 40,
        "draft_vocab_size": ...,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 4, 6]},
    }
    directory = stored(tmp_path / "head", plain(), config, absolute)
    proposer = load_proposer("eagle3", TARGET, checkpoint=directory)
    prompts = [[5, 7, 9], [1, 2]]
    got = Engine(TARGET, proposer, max_batch=2).generate(prompts, SamplingParams(max_tokens=12))
    want = Engine(TARGET, NoProposer(), max_batch=2).generate(prompts, SamplingParams(max_tokens=12))
    assert [one.tokens for one in got] == [one.tokens for one in want]
