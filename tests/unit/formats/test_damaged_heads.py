"""Damaged heads get one printable sentence, and other spellings of modules are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from outrider import OutriderError, load_proposer
from outrider.formats.eagle3 import write_native
from outrider.formats.hf_config import mask_of
from outrider.formats.medusa import read_medusa, write_medusa
from outrider.formats.mtp import read_mtp, write_mtp
from outrider.formats.store import provenance
from outrider.proposers import eagle3, medusa, mtp
from outrider.testing import tiny_target

TARGET = tiny_target(num_layers=6)
LONG = "a" * 5000


def write(kind: str, directory: Path) -> Path:
    directory.mkdir()
    if kind == "eagle3":
        write_native(directory, eagle3.random_checkpoint(TARGET, 0), torch.float64)
    elif kind == "mtp":
        write_mtp(directory, mtp.random_checkpoint(TARGET, 1, "normed", 1), torch.float64)
    else:
        made = medusa.random_checkpoint(TARGET, 3)
        write_medusa(directory, made.shape, made.tensors, "vllm", provenance(TARGET))
    return directory


def edit(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weights_of(directory: Path) -> Path:
    return directory / "model.safetensors"


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("eagle3", {"target_hidden_size": "\ud800"}, r"target_hidden_size is '\ud800'"),
        ("eagle3", {"target_hidden_size": []}, "target_hidden_size is []"),
        ("eagle3", {"vocab_size": [1]}, "vocab_size is [1]"),
        ("eagle3", {"model_type": LONG}, "model_type 'aaa"),
        ("eagle3", {"eagle_config": [1]}, "eagle_config is [1]"),
        ("eagle3", {"rope_theta": "x"}, "rope_theta is 'x'"),
        ("eagle3", {"logits_scaling": 8.0}, "logits_scaling is 8.0, which a"),
        ("eagle3", {"rope_scaling": {"type": "unheard", "factor": 2.0}}, "unheard"),
        ("eagle3", {"speculators_model_type": LONG}, "speculators_model_type 'aaa"),
        ("eagle3", {"outrider": {"target": "\x1b[2J", "target_fingerprint": "x"}}, r"was trained for \x1b[2J, whose"),
        ("medusa", {"num_heads": LONG}, "num_heads='aaa"),
        ("medusa", {"num_heads": 2**40}, "num_heads=1099511627776"),
        ("medusa", {"original_lm_head": "no"}, "original_lm_head is 'no'"),
        ("medusa", {"outrider": {"rank_accuracies": [[10**400]]}}, "rank_accuracies in"),
        ("mtp", {"model_type": LONG}, "model_type 'aaa"),
        ("mtp", {"num_nextn_predict_layers": 2**40}, "num_nextn_predict_layers 1099511627776"),
        ("mtp", {"num_nextn_predict_layers": True}, "num_nextn_predict_layers true"),
        ("mtp", {"outrider": {"state": LONG}}, "state 'aaa"),
        ("mtp", {"rms_norm_eps": None, "hidden_size": 1.5}, "hidden_size is 1.5"),
    ],
)
def test_a_wrong_value_is_named_in_one_printable_sentence(
    tmp_path: Path, kind: str, changes: dict[str, Any], named: str
) -> None:
    edit(write(kind, tmp_path / "head"), **changes)
    with pytest.raises(OutriderError) as caught:
        load_proposer(kind, TARGET, checkpoint=tmp_path / "head")
    message = str(caught.value)
    assert named in message
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize("kind", ["eagle3", "medusa", "mtp"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, kind: str, value: float) -> None:
    file = weights_of(write(kind, tmp_path / "head"))
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if tensors[name].is_floating_point())
    tensors[name].flatten()[0] = value
    save_file(tensors, file)
    with pytest.raises(OutriderError, match=f"tensor {name} in .* holds {value}"):
        load_proposer(kind, TARGET, checkpoint=tmp_path / "head")


@pytest.mark.parametrize("kind", ["eagle3", "medusa", "mtp"])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, kind: str) -> None:
    file = weights_of(write(kind, tmp_path / "head"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(OutriderError, match="truncated or damaged"):
        load_proposer(kind, TARGET, checkpoint=tmp_path / "head")


def test_modules_in_a_block_of_their_own_are_the_same(tmp_path: Path) -> None:
    file = weights_of(write("mtp", tmp_path / "head"))
    wanted = load_file(file)
    inner = ("self_attn", "mlp.", "input_layernorm", "post_attention")
    renamed = {
        name.replace("layers.0.", "layers.0.mtp_block.", name.split("layers.0.")[1].startswith(inner)): tensor
        for name, tensor in wanted.items()
    }
    assert renamed.keys() != wanted.keys()
    save_file(renamed, file)
    read = read_mtp(tmp_path / "head", TARGET)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in wanted.items())


def test_modules_without_biases_are_read(tmp_path: Path) -> None:
    file = weights_of(write("mtp", tmp_path / "head"))
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith(".bias")}, file)
    assert read_mtp(tmp_path / "head", TARGET).spec.qkv_bias is False
    load_proposer("mtp", TARGET, checkpoint=tmp_path / "head")


def test_the_biases_and_the_number_of_medusa_heads_are_those_of_the_file(tmp_path: Path) -> None:
    directory = write("medusa", tmp_path / "head")
    shape = read_medusa(directory, TARGET).shape
    edit(directory, medusa_fc_bias=not shape.bias, num_heads=None)
    assert read_medusa(directory, TARGET).shape == shape


@pytest.mark.parametrize("mask", [[[[]]], [{}], True, "7", 7.0, 10**400])
def test_a_mask_is_one_token(mask: object) -> None:
    with pytest.raises(OutriderError, match=r"names mask token .* which is not one of its 31 tokens"):
        mask_of({"pard_token": mask}, "draft", 31)
