"""Weights are found by name in one file or many, and every way they can be wrong has its own sentence."""

import json
import os
import signal
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from outrider.errors import CheckpointError
from outrider.formats import weights
from outrider.formats.weights import read_weights
from outrider.models.spec import DecoderSpec

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "b.weight": torch.arange(4, dtype=torch.float32),
    "d2t": torch.arange(5),
}


def write_single(directory: Path) -> Path:
    save_file(TENSORS, directory / "model.safetensors")
    return directory


def write_shards(directory: Path) -> Path:
    weight_map = {}
    for number, (name, tensor) in enumerate(TENSORS.items(), start=1):
        shard = f"model-{number:05d}-of-00003.safetensors"
        save_file({name: tensor}, directory / shard)
        weight_map[name] = shard
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("write", [write_single, write_shards])
def test_every_tensor_comes_back_in_its_own_dtype(write: object, tmp_path: Path) -> None:
    assert callable(write)
    weights = read_weights(write(tmp_path))
    assert set(weights) == set(TENSORS)
    assert len(weights) == 3
    for name, tensor in TENSORS.items():
        assert torch.equal(weights[name], tensor)
        assert weights[name].dtype == tensor.dtype
        assert weights.shape(name) == tuple(tensor.shape)
        assert name in weights


def test_a_file_is_a_checkpoint_too_and_so_is_a_directory_with_one_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "head.safetensors")
    assert set(read_weights(tmp_path / "head.safetensors")) == set(read_weights(tmp_path)) == set(TENSORS)


def test_a_transformers_checkpoint_has_exactly_the_tensors_of_its_spec(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read_weights(tmp_path).check(DecoderSpec.from_config_file(tmp_path).weight_shapes())


def test_check_names_the_missing_the_extra_and_the_misshapen(tmp_path: Path) -> None:
    weights = read_weights(write_single(tmp_path))
    shapes = {"a.weight": (2, 3), "b.weight": (4,), "d2t": (5,)}
    weights.check(shapes)
    with pytest.raises(CheckpointError, match=r"no tensor c\.weight; did you mean [ab]\.weight\?"):
        weights.check(shapes | {"c.weight": (1,)})
    with pytest.raises(CheckpointError, match="no tensor lm_head among its 3"):
        weights.check(shapes | {"lm_head": (1,)})
    with pytest.raises(CheckpointError, match=r"tensor a\.weight .* has shape \(2, 3\), expected \(3, 2\)"):
        weights.check(shapes | {"a.weight": (3, 2)})
    with pytest.raises(CheckpointError, match=r"holds tensor d2t, which this model does not have \(1 such"):
        weights.check({"a.weight": (2, 3), "b.weight": (4,)})


def test_optional_tensors_may_be_there_or_not_but_not_misshapen(tmp_path: Path) -> None:
    weights = read_weights(write_single(tmp_path))
    weights.check({"a.weight": (2, 3), "b.weight": (4,)}, optional=["d2t"])
    weights.check({"a.weight": (2, 3), "b.weight": (4,), "d2t": (5,), "t2d": (9,)}, optional=["d2t", "t2d"])
    with pytest.raises(CheckpointError, match=r"d2t .* has shape \(5,\), expected \(6,\)"):
        weights.check({"a.weight": (2, 3), "b.weight": (4,), "d2t": (6,)}, optional=["d2t"])


def test_stored_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    save_file({"layers.0.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "model.safetensors")
    weights = read_weights(tmp_path)
    weights.check({})
    assert len(weights) == 1


def test_take_reads_a_tensor_of_the_expected_shape_only(tmp_path: Path) -> None:
    weights = read_weights(write_single(tmp_path))
    assert torch.equal(weights.take("b.weight", (4,)), TENSORS["b.weight"])
    with pytest.raises(CheckpointError, match=r"has shape \(4,\), expected \(5,\)"):
        weights.take("b.weight", (5,))


def test_looking_up_an_unknown_name_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor a\.weigth; did you mean a\.weight\?"):
        read_weights(write_single(tmp_path))["a.weigth"]


def test_a_quantized_dtype_is_named_and_refused(tmp_path: Path) -> None:
    save_file({"q": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor q .* is stored as F8_E4M3, which is not read"):
        read_weights(tmp_path)["q"]


@pytest.mark.parametrize("lost_bytes", [1, 20])
def test_a_truncated_file_is_found_on_opening(lost_bytes: int, tmp_path: Path) -> None:
    file = write_single(tmp_path) / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-lost_bytes])
    with pytest.raises(CheckpointError, match=f"is {size - lost_bytes} bytes, expected {size}: it is truncated"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is 0 bytes, too short for its own header"),
        (struct.pack("<Q", 10**15) + b"{}", "is 10 bytes, too short for its own header"),
        (struct.pack("<Q", 2) + b"<>", "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"\xff\xff", "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "broken safetensors header"),
        (struct.pack("<Q", 10) + b'{"a": {}} ', "broken safetensors header"),
    ],
)
def test_a_damaged_header_is_found_on_opening(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path)


def test_a_header_that_only_the_library_rejects_is_reported_on_reading(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match="is not a valid safetensors file"):
        read_weights(tmp_path)["a"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (write_shards(tmp_path) / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors does not exist"):
        read_weights(tmp_path)


def test_an_index_that_its_shards_contradict_is_refused(tmp_path: Path) -> None:
    index = write_shards(tmp_path) / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"ghost": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(CheckpointError, match="places tensor ghost in model-00001"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="leaves the directory"):
        read_weights(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        read_weights(tmp_path)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\), which are never opened"):
        read_weights(tmp_path)


def test_places_without_weights_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_weights(tmp_path / "nowhere")
    save_file(TENSORS, tmp_path / "one.safetensors")
    save_file(TENSORS, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 2 safetensors files but no model\.safetensors\.index\.json"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["k" * 3000, "a\x1b[2J"])
def test_an_index_that_names_no_tensor_is_one_short_line(name: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][name] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"names a tensor '(k|a).*; it is damaged") as caught:
        read_weights(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_an_interruption_while_a_tensor_is_read_is_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors gives an exception in the middle of a read as a ValueError of its own."""
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    found = read_weights(tmp_path)

    class Interrupted:
        def __enter__(self) -> "Interrupted":
            return self

        def __exit__(self, *error: object) -> None: ...

        def get_tensor(self, name: str) -> torch.Tensor:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                return torch.zeros(2)
            except KeyboardInterrupt:
                raise ValueError("could not determine the shape of object type") from None

    monkeypatch.setattr(weights, "_opened", lambda file: Interrupted())
    for read in (found.__getitem__, found.integers):
        found.stored["a"] = replace(found.stored["a"], dtype="I64")
        with pytest.raises(KeyboardInterrupt):
            read("a")
