"""EAGLE-3 checkpoints: both layouts there and back, published shapes, and everything that may not fit."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from outrider import CheckpointError
from outrider.formats.eagle3 import (
    Eagle3Checkpoint,
    native_config,
    offsets_of,
    read_eagle3,
    spec_of,
    write_native,
    write_speculators,
)
from outrider.formats.eagle3_speculators import native_of
from outrider.formats.store import provenance
from outrider.proposers import peagle
from outrider.proposers.eagle3 import random_checkpoint
from outrider.target import Target
from outrider.testing import tiny_spec, tiny_target
from outrider.testing.directory import write_tiny_model

VERIFIER: dict[str, Any] = {"verifier": "org/target", "architectures": ["LlamaForCausalLM"], "num_tokens": 3}
Writer = Callable[[Path, Eagle3Checkpoint], None]


def native(directory: Path, checkpoint: Eagle3Checkpoint) -> None:
    directory.mkdir(exist_ok=True)
    write_native(directory, checkpoint, torch.float64)


def speculators(directory: Path, checkpoint: Eagle3Checkpoint) -> None:
    directory.mkdir(exist_ok=True)
    write_speculators(directory, checkpoint, torch.float64, **VERIFIER)


def edit(directory: Path, **changes: Any) -> None:
    """Replace keys of the config; None removes one."""
    file = directory / "config.json"
    config = {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not None}
    file.write_text(json.dumps(config))


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")


@pytest.mark.parametrize("write", [native, speculators])
@pytest.mark.parametrize("seed", range(7))
def test_saving_loading_and_saving_again_gives_equal_bytes(tmp_path: Path, write: Writer, seed: int) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, seed)
    about = provenance(target, training={"decay": 0.8})
    checkpoint = Eagle3Checkpoint(
        spec=checkpoint.spec, tensors=checkpoint.tensors, ids_K=checkpoint.ids_K, provenance=about
    )
    write(tmp_path / "one", checkpoint)
    read = read_eagle3(tmp_path / "one", target)
    assert read.spec == checkpoint.spec
    assert torch.equal(read.ids_K, checkpoint.ids_K)
    write(tmp_path / "two", read)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("write", [native, speculators])
def test_a_head_of_masked_slots_survives_a_round_trip(tmp_path: Path, write: Writer, seed: int) -> None:
    target = tiny_target()
    checkpoint = peagle.random_checkpoint(target, seed)
    write(tmp_path / "one", checkpoint)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["mask_token_id"] == checkpoint.spec.mask_id
    if write is speculators:  # as the library names them
        assert (config["speculators_model_type"], config["architectures"]) == ("peagle", ["PEagleSpeculator"])
        edit(tmp_path / "one", embed_requires_grad=True)
    read = read_eagle3(tmp_path / "one", target)
    assert read.spec == checkpoint.spec
    assert torch.equal(read.tensors["mask_hidden"], checkpoint.tensors["mask_hidden"])
    assert read.tensors["mask_hidden"].shape == (1, 1, checkpoint.spec.features)


@pytest.mark.parametrize("seed", [1, 6])
def test_a_head_goes_from_one_layout_to_the_other_and_back(tmp_path: Path, seed: int) -> None:
    target = tiny_target()
    native(tmp_path / "one", random_checkpoint(target, seed))
    speculators(tmp_path / "two", read_eagle3(tmp_path / "one", target))
    native(tmp_path / "three", read_eagle3(tmp_path / "two", target))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()


def test_what_engines_read_differently_is_written_out(tmp_path: Path) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, 3)
    assert checkpoint.spec.layer_ids is None
    native(tmp_path / "native", checkpoint)
    speculators(tmp_path / "speculators", checkpoint)
    for name in ("native", "speculators"):
        text = (tmp_path / name / "config.json").read_text()
        assert json.loads(text)["norm_before_residual"] is False
        assert "layer_ids" not in text
    config = json.loads((tmp_path / "speculators" / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3
    assert config["speculators_config"]["verifier"]["name_or_path"] == "org/target"
    assert config["transformer_layer_config"]["model_type"] == "llama"


def test_maps_are_offsets_and_marks(tmp_path: Path) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, 0)
    native(tmp_path / "head", checkpoint)
    tensors = load_file(tmp_path / "head" / "model.safetensors")
    assert torch.equal(torch.arange(len(checkpoint.ids_K)) + tensors["d2t"], checkpoint.ids_K)
    assert tensors["d2t"].dtype == torch.int64
    assert tensors["t2d"].dtype == torch.bool
    assert tensors["t2d"].nonzero().flatten().tolist() == checkpoint.ids_K.tolist()


# ---- spellings


def rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.startswith(old) and name not in ("d2t", "t2d", "lm_head.weight"):
                tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return change


@pytest.mark.parametrize(("old", "new"), [("midlayer.", "layers.0."), ("", "model."), ("fc_norm.", "fc_norm.")])
def test_other_spellings_are_the_same_head(tmp_path: Path, old: str, new: str) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, 1)
    native(tmp_path / "head", checkpoint)
    rewrite(tmp_path / "head", rename(old, new))
    read = read_eagle3(tmp_path / "head", target)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())


def test_further_layers_have_published_names(tmp_path: Path) -> None:
    """As the speculators library names them: only the first layer reads twice the width and has `hidden_norm`."""
    target = tiny_target()
    speculators(tmp_path / "head", random_checkpoint(target, 5))
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["transformer_layer_config"]["num_hidden_layers"] == 2
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "head" / "model.safetensors").items()}
    parts = [f"self_attn.{part}_proj.weight" for part in "qkvo"]
    parts += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    parts += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    first = {name.removeprefix("layers.0."): shape for name, shape in shapes.items() if name.startswith("layers.0.")}
    second = {name.removeprefix("layers.1."): shape for name, shape in shapes.items() if name.startswith("layers.1.")}
    assert (set(first), set(second)) == ({*parts, "hidden_norm.weight"}, set(parts))
    assert [first[part][1] for part in parts[:3]] == [32, 32, 32]
    assert [second[part][1] for part in parts[:3]] == [16, 16, 16]


def test_the_older_names_of_the_state_norms(tmp_path: Path) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, 1)
    assert checkpoint.spec.fc_norm
    native(tmp_path / "head", checkpoint)
    edit(tmp_path / "head", fc_norm=None)
    for feature_layer, name in enumerate(("low", "mid", "high")):
        rewrite(tmp_path / "head", rename(f"fc_norm.{feature_layer}", f"aux_norm_{name}"))
    read = read_eagle3(tmp_path / "head", target)
    assert read.spec.fc_norm
    assert torch.equal(read.tensors["fc_norm.2.weight"], checkpoint.tensors["fc_norm.2.weight"])


def test_maps_and_output_head_may_be_left_out_where_every_token_has_a_column(tmp_path: Path) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, 3)
    assert checkpoint.spec.draft_vocab_size == 31
    native(tmp_path / "head", checkpoint)
    edit(tmp_path / "head", draft_vocab_size=None)
    rewrite(tmp_path / "head", lambda tensors: [tensors.pop(name) for name in ("d2t", "t2d", "lm_head.weight")])  # type: ignore[arg-type,return-value]
    read = read_eagle3(tmp_path / "head", target)
    assert read.ids_K.tolist() == list(range(31))
    assert "lm_head.weight" not in read.tensors


# ---- published files


QWEN2 = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": 3584,
    "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 1,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
    "max_position_embeddings": 32768, "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 151643,
    "eos_token_id": 151645, "vocab_size": 152064, "draft_vocab_size": 16000, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3 = QWEN2 | {
    "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 40960, "vocab_size": 151936, "draft_vocab_size": 32000,
}  # fmt: skip
LLAMA3 = QWEN2 | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072, "vocab_size": 128256,
    "draft_vocab_size": 32000, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}  # fmt: skip


class Published(Target):  # type: ignore[misc]
    """A target of full size of which nothing but the spec is ever asked."""

    def __init__(self, config: Mapping[str, Any], num_layers: int) -> None:
        from dataclasses import replace

        small = tiny_target().spec
        self._spec = replace(
            small,
            name="full",
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=num_layers,
        )

    @property
    def spec(self) -> Any:
        return self._spec

    tokenizer = plan = open = project = decoding_threads = shared_weights = None  # type: ignore[assignment]


def sparse_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of bf16 zeros that takes no disk: a header, and a hole where the numbers would be."""
    header, end = {}, 0
    for name, shape in shapes.items():
        kind, size = {"d2t": ("I64", 8), "t2d": ("BOOL", 1)}.get(name, ("BF16", 2))
        start, end = end, end + size * torch.Size(shape).numel()
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


@pytest.mark.parametrize(
    ("config", "num_layers", "feature_layers", "projections"),
    [
        (QWEN2, 28, (2, 14, 25), {"q": (3584, 7168), "k": (512, 7168), "v": (512, 7168)}),
        (QWEN3, 36, (2, 18, 33), {"q": (4096, 8192), "k": (1024, 8192), "v": (1024, 8192)}),
        (LLAMA3, 32, (2, 16, 29), {"q": (4096, 8192), "k": (1024, 8192), "v": (1024, 8192)}),
    ],
    ids=["Qwen2.5-7B", "Qwen3-8B", "Llama-3.1-8B"],
)
@pytest.mark.parametrize("layer_name", ["midlayer.", "layers.0."])
def test_published_full_size_heads_are_accepted_by_name_and_shape(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    num_layers: int,
    feature_layers: tuple[int, ...],
    projections: dict[str, tuple[int, int]],
    layer_name: str,
) -> None:
    width, inner, columns = config["hidden_size"], config["intermediate_size"], config["draft_vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "d2t": (columns,),
        "t2d": (config["vocab_size"],),
        "fc.weight": (width, 3 * width),
        f"{layer_name}hidden_norm.weight": (width,),
        f"{layer_name}input_layernorm.weight": (width,),
        f"{layer_name}post_attention_layernorm.weight": (width,),
        **{f"{layer_name}self_attn.{part}_proj.weight": shape for part, shape in projections.items()},
        f"{layer_name}self_attn.o_proj.weight": (width, width),
        f"{layer_name}mlp.gate_proj.weight": (inner, width),
        f"{layer_name}mlp.up_proj.weight": (inner, width),
        f"{layer_name}mlp.down_proj.weight": (width, inner),
        "norm.weight": (width,),
        "lm_head.weight": (columns, width),
    }
    sparse_file(tmp_path / "model.safetensors", shapes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    from outrider.formats.weights import Weights

    read: list[str] = []

    def only_maps(weights: Weights, name: str) -> torch.Tensor:
        read.append(name)
        if name == "t2d":
            return torch.arange(config["vocab_size"]) < columns
        return torch.zeros(columns if name == "d2t" else 0, dtype=torch.int64)

    monkeypatch.setattr(Weights, "__getitem__", only_maps)
    monkeypatch.setattr(Weights, "integers", only_maps)
    head = read_eagle3(tmp_path, Published(config, num_layers))
    assert head.spec.feature_layers(num_layers) == feature_layers
    assert head.spec.layer.rope.theta == config["rope_theta"]
    assert head.spec.layer.rope.type == ("llama3" if config is LLAMA3 else "default")
    assert set(read) == set(shapes)


def test_a_published_config_reads_and_writes_the_same_layer() -> None:
    for config in (QWEN2, QWEN3, LLAMA3):
        spec = spec_of(config, Path("config.json"))
        written = native_config(
            Eagle3Checkpoint(spec=spec, tensors={}, ids_K=torch.arange(3), provenance={}), torch.bfloat16
        )
        for key in set(config) - {"torch_dtype", "bos_token_id", "rope_scaling"}:
            assert written[key] == config[key], key
        assert spec_of(written, Path("config.json")) == spec


# ---- what is refused


def break_d2t(value: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["d2t"][-1] = value
        del tensors["t2d"]

    return change


def absolute_ids(tensors: dict[str, torch.Tensor]) -> None:
    tensors["d2t"] += torch.arange(len(tensors["d2t"]))


def other_marks(tensors: dict[str, torch.Tensor]) -> None:
    tensors["t2d"] = tensors["t2d"].roll(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("fc.weight"), "no tensor fc.weight"),
        (lambda tensors: tensors.pop("midlayer.hidden_norm.weight"), "no tensor midlayer.hidden_norm.weight"),
        (lambda tensors: tensors.pop("d2t"), "no tensor d2t"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "holds tensor extra, which this model does not have"),
        (
            lambda tensors: tensors.update({"lm_head.weight": torch.zeros(20, 15)}),
            r"lm_head.weight .* has shape \(20, 15\), expected \(20, 16\)",
        ),
        (break_d2t(12), "d2t of .* points to token 31, outside the vocabulary of 31"),
        (break_d2t(-20), "d2t of .* points to token -1, outside"),
        (other_marks, "t2d of .* marks other tokens than d2t"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    target = tiny_target()
    native(tmp_path / "head", random_checkpoint(target, 0))
    rewrite(tmp_path / "head", change)
    with pytest.raises(CheckpointError, match=message):
        read_eagle3(tmp_path / "head", target)


def test_two_columns_of_one_token_are_refused(tmp_path: Path) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, 0)
    native(tmp_path / "head", checkpoint)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        ids_K = checkpoint.ids_K.clone()
        ids_K[1] = ids_K[0]
        tensors["d2t"] = offsets_of(ids_K)

    rewrite(tmp_path / "head", change)
    with pytest.raises(CheckpointError, match="gives two columns the same token"):
        read_eagle3(tmp_path / "head", target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "has model_type 'gpt2'; heads of type llama, qwen2, qwen3"),
        ({"hidden_act": "relu"}, "cannot be run: hidden_act is 'relu'"),
        ({"target_hidden_size": 32}, "target with hidden size 32, but tiny-0 has 16"),
        ({"vocab_size": 40}, "target with vocabulary size 40, but tiny-0 has 31"),
        (
            {"eagle_aux_hidden_state_layer_ids": [0, 1, 3]},
            "reads the state before layer 3, but tiny-0 has layers 0 to 1",
        ),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1]}, "names 2 layers, but its fc.weight fuses 3 states"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, -1]}, "eagle_aux_hidden_state_layer_ids"),
        ({"eagle_aux_hidden_state_layer_ids": "0,1,2"}, "eagle_aux_hidden_state_layer_ids is '0,1,2' but must be"),
        ({"max_position_embeddings": "wide"}, "is not a valid llama config"),
        ({"norm_before_residual": "yes"}, "norm_before_residual is 'yes' but must be"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0 but must be"),
        ({"layer_types": ["sliding_attention"]}, "sliding_window"),
    ],
)
def test_configs_that_do_not_fit_get_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    target = tiny_target()
    native(tmp_path / "head", random_checkpoint(target, 3))
    edit(tmp_path / "head", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_eagle3(tmp_path / "head", target)


def test_a_narrower_head_needs_its_own_embedding(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tiny_target(), 3)
    native(tmp_path / "head", checkpoint)
    wide = tiny_target(spec=tiny_spec(hidden_size=32))
    edit(tmp_path / "head", target_hidden_size=32)
    rewrite(tmp_path / "head", lambda tensors: tensors.update({"fc.weight": torch.zeros(16, 96)}))
    with pytest.raises(CheckpointError, match=r"no embed_tokens\.weight, and its hidden size 16 differs"):
        read_eagle3(tmp_path / "head", wide)
    rewrite(tmp_path / "head", lambda tensors: tensors.update({"embed_tokens.weight": torch.zeros(31, 16)}))
    assert "embed_tokens.weight" in read_eagle3(tmp_path / "head", wide).tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_before_residual": None}, "does not say norm_before_residual"),
        ({"speculators_model_type": "hass"}, "speculators_model_type 'hass'; only 'eagle3' and 'peagle'"),
        ({"transformer_layer_config": None}, "has no transformer_layer_config"),
    ],
)
def test_speculators_configs_that_say_too_little(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    target = tiny_target()
    speculators(tmp_path / "head", random_checkpoint(target, 0))
    edit(tmp_path / "head", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_eagle3(tmp_path / "head", target)


def test_a_head_of_another_target_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    target = tiny_target(0)
    checkpoint = random_checkpoint(target, 0)
    native(
        tmp_path / "head",
        Eagle3Checkpoint(
            spec=checkpoint.spec, tensors=checkpoint.tensors, ids_K=checkpoint.ids_K, provenance=provenance(target)
        ),
    )
    with pytest.raises(CheckpointError, match="was trained for tiny-0, whose embedding differs from that of tiny-1"):
        read_eagle3(tmp_path / "head", tiny_target(1))


def test_a_speculators_config_is_read_from_its_library_form() -> None:
    """Keys that the library stores beside ours are passed over."""
    config = {
        "speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"], "draft_vocab_size": 32000,
        "norm_before_residual": True, "target_hidden_size": None, "eagle_aux_hidden_state_layer_ids": None,
        "transformer_layer_config": {**LLAMA3, "vocab_size": 128256}, "speculators_config": {"algorithm": "eagle3"},
    }  # fmt: skip
    spec = spec_of(native_of(config, Path("config.json")), Path("config.json"))
    assert (spec.norm_before_residual, spec.target_hidden_size, spec.layer_ids) == (True, 4096, None)


def test_files_of_the_writer_hold_only_named_tensors(tmp_path: Path) -> None:
    target = tiny_target()
    native(tmp_path / "head", random_checkpoint(target, 0))
    with safe_open(tmp_path / "head" / "model.safetensors", framework="pt") as file:
        assert {name for name in file.keys() if "." not in name} == {"d2t", "t2d"}  # noqa: SIM118
    write_tiny_model(tmp_path / "model")
    with pytest.raises(CheckpointError, match="made for a target with vocabulary size 258"):
        read_eagle3(tmp_path / "model", target)
