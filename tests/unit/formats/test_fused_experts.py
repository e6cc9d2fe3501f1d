"""Experts that a file stores in two tensors: read one by one, and written as they were."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from outrider.errors import CheckpointError
from outrider.formats.gguf.tensors import GgufTensor, split_experts
from outrider.formats.quantised.parts import part
from outrider.formats.tensors.stored import fuse, fused_names
from outrider.formats.weights import read_weights

PREFIX = "model.layers.1.feed_forward.experts"
BOTH, DOWN = f"{PREFIX}.gate_up_proj", f"{PREFIX}.down_proj"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three experts of 4 inner and 5 outer features; every number is its place."""
    tensors = {BOTH: torch.arange(3 * 5 * 8.0).view(3, 5, 8), DOWN: torch.arange(3 * 4 * 5.0).view(3, 4, 5)}
    save_file(tensors | {"model.norm.weight": torch.ones(5)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_matrices_of_experts_are_entries_of_their_own(file: Path) -> None:
    weights = read_weights(file)
    assert len(weights) == 3 * 3 + 1
    assert weights.shape(f"{PREFIX}.2.up_proj.weight") == (4, 5)
    # up is the second half of columns: row r, feature f of expert 2 is number 2 * 40 + 8 * f + 4 + r
    wanted = torch.tensor([[80.0 + 8 * feature + 4 + row for feature in range(5)] for row in range(4)])
    assert torch.equal(weights[f"{PREFIX}.2.up_proj.weight"], wanted)
    stored = weights.stored[f"{PREFIX}.2.up_proj.weight"]
    assert torch.equal(part(stored, slice(1, 3)), wanted[1:3])
    assert torch.equal(part(stored, slice(2, 9), slice(1, 4)), wanted[2:, 1:4])


def test_what_is_written_is_what_was_read(file: Path) -> None:
    weights = read_weights(file)
    again = {
        name: fuse(name, [weights[member] for member in members])
        for name, members in fused_names(reversed(list(weights))).items()
    }
    assert again.keys() == {BOTH, DOWN, "model.norm.weight"}
    assert torch.equal(again[BOTH], torch.arange(3 * 5 * 8.0).view(3, 5, 8))
    assert torch.equal(again[DOWN], torch.arange(3 * 4 * 5.0).view(3, 4, 5))


@pytest.mark.parametrize("shape", [(3, 5, 7), (2**40, 0, 8)], ids=["odd", "countless"])
def test_what_cannot_be_split_is_refused_by_its_name(shape: tuple[int, ...], tmp_path: Path) -> None:
    save_file({BOTH: torch.empty(shape)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"holds tensor {BOTH}, which this model does not have"):
        read_weights(tmp_path).check({})


def test_countless_experts_of_no_bytes_in_a_gguf_file_are_not_listed(tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    tensor = GgufTensor(name=name, file=tmp_path, kind="F32", shape=(2**40, 0, 32), offset=0, row_bytes=128)
    assert split_experts({name: tensor}) == {name: tensor}
