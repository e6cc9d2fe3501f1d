"""DFlash networks on disk: both layouts, what their keys mean, round trips, and precise refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from outrider import CheckpointError, load_proposer
from outrider.formats.blocks.dflash import DFlashCheckpoint, read_dflash, write_native, write_speculators
from outrider.formats.store import provenance
from outrider.models.blocks.dflash import default_layer_ids
from outrider.proposers.drafting.block_network import random_checkpoint
from outrider.testing import tiny_target

TARGET = tiny_target(num_layers=6)
OTHER = tiny_target(1, num_layers=6, hidden_size=24)


def write(directory: Path, checkpoint: DFlashCheckpoint, layout: str = "native") -> Path:
    directory.mkdir()
    if layout == "native":
        write_native(directory, checkpoint, 6, torch.float64)
    else:
        write_speculators(
            directory,
            checkpoint,
            torch.float64,
            verifier="a/b",
            architectures=["LlamaForCausalLM"],
            target_layers=6,
        )
    return directory


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())  # type: ignore[no-any-return]


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = config_of(directory)
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("seed", "layout"), [*product([*range(15), 32], ["native", "speculators"]), (21, "native")])
def test_a_network_survives_a_round_trip(seed: int, layout: str, tmp_path: Path) -> None:
    made = replace(random_checkpoint(TARGET, seed), provenance=provenance(TARGET, note=seed))
    found = read_dflash(write(tmp_path / "head", made, layout), TARGET)
    assert found.spec == made.spec
    assert torch.equal(found.ids_K, made.ids_K)
    assert found.provenance == made.provenance
    assert found.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in made.tensors.items())


def test_a_markov_head_is_named_in_the_library_s_words(tmp_path: Path) -> None:
    made = random_checkpoint(TARGET, 6)
    assert made.spec.markov_rank
    config = config_of(write(tmp_path / "head", made, "speculators"))
    assert (config["speculators_model_type"], config["architectures"]) == ("dspark", ["DSparkSpeculator"])
    assert config["speculators_config"]["algorithm"] == "dspark"
    assert (config["markov_rank"], config["markov_head_type"]) == (3, "vanilla")
    assert (config["enable_confidence_head"], config["confidence_head_with_markov"]) == (True, True)


def test_dflash2_as_its_authors_publish_it(tmp_path: Path) -> None:
    """Written by hand after the configuration of a head for Qwen3.8-27B, with this target's sizes."""
    made = random_checkpoint(TARGET, 10)
    directory = write(tmp_path / "head", made)
    assert config_of(directory)["architectures"] == ["DFlash2DraftModel"]
    published = {
        "architectures": ["DFlash2DraftModel"],
        "attention_bias": False,
        "dflash_config": {
            "block_size": 5,
            "conv_group_size": 4,
            "conv_kernel_size": 2,
            "mask_token_id": 11,
            "selector_rank": 3,
            "selector_top_k": 16,
            "target_layer_ids": [layer - 1 for layer in made.spec.layer_ids],
        },
        "dtype": "bfloat16",
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 32,
        "is_causal": False,
        "layer_types": ["sliding_attention"] * 2,
        "max_position_embeddings": 96,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "num_target_layers": 6,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000000, "rope_type": "default"},
        "sliding_window": 20,
        "tie_word_embeddings": False,
        "use_sliding_window": True,
        "vocab_size": 31,
    }
    (directory / "config.json").write_text(json.dumps(published))
    spec = read_dflash(directory, TARGET).spec
    sizes = (spec.conv_kernel_size, spec.conv_group_size, spec.selector_rank, spec.selector_top_k)
    assert (*sizes, spec.block_size, spec.mask_id, spec.first_slot) == (2, 4, 3, 16, 5, 11, 1)
    assert (spec.causal, spec.decoder.windows) == ((False, False), (20, 20))
    assert (spec.embedding_scale, spec.output_scale, spec.softcap) == (1.0, 1.0, 0.0)
    scales = {"input_embedding_scale": 0.5, "output_multiplier": 0.25, "final_logit_softcapping": 20.0}
    edit(directory, lambda config: config["dflash_config"].update(scales))
    spec = read_dflash(directory, TARGET).spec
    assert (spec.embedding_scale, spec.output_scale, spec.softcap) == (0.5, 0.25, 20.0)
    edit(directory, lambda config: config.update(config["dflash_config"], projector_type="dflash2"))  # at the top too
    assert read_dflash(directory, TARGET).spec == spec


def test_dflash2_as_the_library_names_it(tmp_path: Path) -> None:
    made = random_checkpoint(TARGET, 10)
    assert made.spec.causal == (False, True)
    every = replace(made, spec=replace(made.spec, causal=(False, False)))
    directory = write(tmp_path / "head", every, "speculators")
    config = config_of(directory)
    assert (config["speculators_model_type"], config["architectures"]) == ("dflash2", ["DFlash2DraftModel"])
    assert config["speculators_config"]["algorithm"] == "dflash2"
    assert [config[key] for key in ("conv_kernel_size", "conv_group_size", "selector_rank")] == [2, 4, 3]
    assert config["selector_top_k"] == made.spec.selector_top_k
    assert not {"conv_kernel_size", "selector_rank"} & config["transformer_layer_config"].keys()
    edit(directory, lambda config: config.pop("sliding_window_non_causal"))  # its default is one in all engines
    assert read_dflash(directory, TARGET).spec == every.spec
    scaled = replace(made, spec=replace(made.spec, output_scale=0.5))
    with pytest.raises(CheckpointError, match=r"the speculators layout has no keys for scales \(input_embedding_scale"):
        write(tmp_path / "scaled", scaled, "speculators")


SECOND: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.pop("selector_top_k"), "selector_top_k is missing"),
    (
        lambda c: c.update(selector_top_k=32),
        "has selector_top_k 32, more than its 31 tokens; check it against the original",
    ),
    (lambda c: c.update(conv_group_size=3), "has conv_group_size 3, which does not divide the hidden size 16"),
    (lambda c: c.update(conv_kernel_size=6), "has conv_kernel_size 6, more than a block's 5 slots"),
    (lambda c: c.update(conv_kernel_size=3), r"attention_conv.base_kernel .* expected \(2, 3, 16\)"),
    (lambda c: c.update(selector_rank="3"), "selector_rank is '3' but must be an integer from 1"),
    (lambda c: c.update(selector_rank=7), r"candidate_selector.predecessor_codebook .* expected \(31, 7\)"),
    (lambda c: c.update(sample_from_anchor=True), "has a selector that begins at the root's own slot"),
    (lambda c: [c.pop(key) for key in [*c] if key.startswith(("conv", "selector"))], "conv_kernel_size is missing"),
]


@pytest.mark.parametrize(("change", "message"), SECOND)
def test_faults_of_dflash2_are_named(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    directory = write(tmp_path / "head", random_checkpoint(TARGET, 10), "speculators")
    edit(directory, change)
    with pytest.raises(CheckpointError, match=message):
        read_dflash(directory, TARGET)


def test_a_config_as_the_authors_publish_it(tmp_path: Path) -> None:
    """Written by hand after SpecForge's configuration of a head for Qwen2.5-0.5B, with this target's sizes."""
    made = random_checkpoint(TARGET, 12)  # one layer
    directory = write(tmp_path / "head", made)
    ids = list(made.spec.layer_ids)
    published = {
        "architectures": ["DFlashDraftModel"],
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "attention_bias": False,
        "block_size": 16,
        "dflash_config": {"mask_token_id": 21, "target_layer_ids": [layer - 1 for layer in ids]},
        "dtype": "bfloat16",
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 32,
        "layer_types": ["full_attention"],
        "max_position_embeddings": 96,
        "max_window_layers": 5,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "num_target_layers": 6,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 31,
    }
    (directory / "config.json").write_text(json.dumps(published))
    spec = read_dflash(directory, TARGET).spec
    assert (spec.block_size, spec.mask_id, spec.layer_ids) == (16, 21, tuple(ids))
    assert (spec.drafts_at_root, spec.causal, spec.decoder.qk_norm) == (False, (False,), True)
    assert spec.decoder.rope.theta == 1e6
    assert load_proposer("dflash", TARGET, checkpoint=str(directory)).spec.max_nodes == 15
    # DeepSpec writes the same keys outside the section, and its root drafts too
    edit(directory, lambda config: config.update(config.pop("dflash_config"), architectures=["Qwen3DSparkModel"]))
    assert read_dflash(directory, TARGET).spec == replace(spec, drafts_at_root=True)
    edit(directory, lambda config: config.update(markov_rank=0, num_anchors=512, enable_confidence_head=False))
    assert read_dflash(directory, TARGET).spec == replace(spec, drafts_at_root=True)
    edit(directory, lambda config: config.update(target_layer_ids=[-1, *config["target_layer_ids"][1:]]))
    assert read_dflash(directory, TARGET).spec.layer_ids[0] == 0


def test_both_layouts_count_layers_differently(tmp_path: Path) -> None:
    made = random_checkpoint(TARGET, 1)
    made = replace(made, spec=replace(made.spec, layer_ids=(2, 6)))
    native = config_of(write(tmp_path / "native", made))
    outer = config_of(write(tmp_path / "speculators", made, "speculators"))
    assert native["dflash_config"]["target_layer_ids"] == [1, 5]
    assert outer["aux_hidden_state_layer_ids"] == [2, 6]
    # after the last layer, engines take the stream that enters the final norm
    assert made.spec.feature_layers(6) == (2, 7)


def test_without_ids_the_published_default_is_read(tmp_path: Path) -> None:
    made = random_checkpoint(TARGET, 3)
    made = replace(made, spec=replace(made.spec, layer_ids=default_layer_ids(6, 1)))
    fc = made.tensors["fc.weight"][:, :16]
    directory = write(tmp_path / "head", replace(made, tensors={**made.tensors, "fc.weight": fc}))
    edit(directory, lambda config: config["dflash_config"].pop("target_layer_ids"))
    assert read_dflash(directory, TARGET).spec.layer_ids == (4,)  # after layer 6 // 2


SLIDING = {"layer_types": ["sliding_attention"], "sliding_window": 9}


@pytest.mark.parametrize(
    ("keys", "section", "windows", "causal"),
    [
        ({}, {}, (None,), (False,)),
        ({}, {"causal": True}, (None,), (True,)),
        ({"is_causal": False}, {"causal": True}, (None,), (False,)),
        (SLIDING, {}, (9,), (True,)),
        (SLIDING, {"causal": False}, (9,), (False,)),
        ({**SLIDING, "use_sliding_window": False}, {}, (9,), (True,)),
    ],
)
def test_windows_and_causality(
    keys: dict[str, Any], section: dict[str, Any], windows: object, causal: object, tmp_path: Path
) -> None:
    directory = write(tmp_path / "head", random_checkpoint(TARGET, 6))
    edit(directory, lambda config: config.pop("is_causal", None))
    edit(directory, lambda config: config["dflash_config"].update(section))
    edit(directory, lambda config: config.update(keys))
    spec = read_dflash(directory, TARGET).spec
    assert (spec.decoder.windows, spec.causal) == (windows, causal)


def test_a_prefix_and_copies_for_training_are_read_past(tmp_path: Path) -> None:
    made = random_checkpoint(TARGET, 0)
    directory = write(tmp_path / "head", made)
    tensors = load_file(directory / "model.safetensors")
    spelled = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save_file(spelled | {"verifier_norm.weight": torch.ones(16)}, directory / "model.safetensors")
    assert read_dflash(directory, TARGET).tensors.keys() == made.tensors.keys()
    save_file(tensors | {"model.norm.weight": torch.ones(16)}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.norm.weight and norm.weight|norm.weight and model.norm.weight"):
        read_dflash(directory, TARGET)


REFUSED: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    (
        "native",
        lambda c: c["dflash_config"].update(attention_sink_bias=True),
        "dflash_config.attention_sink_bias is true",
    ),
    ("native", lambda c: c["dflash_config"].update(output_multiplier=0), "output_multiplier is 0 but must be a number"),
    ("native", lambda c: c["dflash_config"].update(selector_rank=3), "conv_kernel_size is missing"),
    ("native", lambda c: c.update(logits_scaling=8.0), "logits_scaling is 8.0, which a qwen3 model does not obey"),
    ("native", lambda c: c["dflash_config"].pop("mask_token_id"), "mask_token_id is missing"),
    (
        "native",
        lambda c: c["dflash_config"].update(mask_token_id=31),
        "names mask token 31, which is not one of the 31",
    ),
    ("native", lambda c: c.pop("block_size"), "block_size is missing"),
    ("native", lambda c: c.update(block_size=1), "block_size is 1 but must be an integer from 2 to 256"),
    ("native", lambda c: c["dflash_config"].update(block_size=3), "has two values of block_size"),
    ("native", lambda c: c["dflash_config"].update(target_layer_ids=[6]), "reads the state after layer 6"),
    ("native", lambda c: c["dflash_config"].update(target_layer_ids=[1, 2, 3]), "fuses 3 states, but fc.weight has"),
    ("native", lambda c: c.update(num_target_layers=7), "was made for a target with 7 layers, but this one has 6"),
    ("native", lambda c: c.update(vocab_size=32), "was made for a target with vocabulary size 32, but tiny-0 has 31"),
    ("native", lambda c: c.update(model_type="gpt2"), "model_type 'gpt2'; known: qwen3"),
    ("native", lambda c: c.update(layer_types=["full_attention"] * 3), "names 3 layer_types"),
    ("native", lambda c: c.update(hidden_act="gelu"), "hidden_act is 'gelu', not 'silu'"),
    ("native", lambda c: c.update(intermediate_size=33), "mlp.gate_proj.weight .* expected"),
    ("native", lambda c: c.update(SLIDING, sliding_window=3), "sliding_window of fewer positions than a block's 4"),
    ("native", lambda c: c.update(markov_rank=256), "has markov_rank 256, but markov_head.markov_w1.weight has rank 0"),
    (
        "native",
        lambda c: c.update(markov_head_type="rnn"),
        "has markov_head_type 'rnn', a network that is",
    ),
    ("speculators", lambda c: c.update(projector_type="domino"), "has projector_type 'domino', a network that is not"),
    ("speculators", lambda c: c.update(shift_label=True), "has shift_label true, a network that is not run here"),
    ("speculators", lambda c: c.update(speculators_model_type="eagle3"), "'eagle3'; only dflash, dspark, dflash2"),
    ("speculators", lambda c: c.pop("aux_hidden_state_layer_ids"), "aux_hidden_state_layer_ids is missing"),
    ("speculators", lambda c: c.update(aux_hidden_state_layer_ids=[0]), r"aux_hidden_state_layer_ids\[0\] is 0"),
    ("speculators", lambda c: c.update(norm_before_residual=True), "norm_before_residual is true"),
]


@pytest.mark.parametrize(("layout", "change", "message"), REFUSED)
def test_what_would_change_the_numbers_is_refused_by_name(
    layout: str, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    directory = write(tmp_path / "head", random_checkpoint(TARGET, 0), layout)
    edit(directory, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_dflash(directory, TARGET)
    assert "\n" not in str(caught.value)


def test_layer_types_of_another_kind_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "head", random_checkpoint(TARGET, 0), "speculators")
    edit(directory, lambda config: config["transformer_layer_config"].update(layer_types=7))
    with pytest.raises(CheckpointError, match=r"transformer_layer_config\.layer_types is 7 but must be a list"):
        read_dflash(directory, TARGET)


def test_engines_differ_on_sliding_layers_so_the_key_must_be_there(tmp_path: Path) -> None:
    directory = write(tmp_path / "head", random_checkpoint(TARGET, 3), "speculators")
    assert "sliding_attention" in config_of(directory)["transformer_layer_config"]["layer_types"]
    edit(directory, lambda config: config.pop("sliding_window_non_causal"))
    with pytest.raises(CheckpointError, match="does not say sliding_window_non_causal, which engines read differently"):
        read_dflash(directory, TARGET)


def test_a_network_for_another_target_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "head", random_checkpoint(OTHER, 0))
    with pytest.raises(CheckpointError, match="was made for a target with hidden size 24, but tiny-0 has 16"):
        read_dflash(directory, TARGET)
    ours = replace(random_checkpoint(TARGET, 0), provenance=provenance(TARGET))
    with pytest.raises(CheckpointError, match="was trained for tiny-0, whose embedding differs from that of tiny-1"):
        read_dflash(write(tmp_path / "ours", ours), tiny_target(1, num_layers=6))


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "head", random_checkpoint(TARGET, 0))
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"layers.0.self_attn.g_proj.weight": torch.ones(1)}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds tensor layers.0.self_attn.g_proj.weight, which this model does"):
        read_dflash(directory, TARGET)
    save_file(
        {name: tensors[name] for name in tensors if name != "hidden_norm.weight"}, directory / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"no tensor hidden_norm.weight"):
        read_dflash(directory, TARGET)
