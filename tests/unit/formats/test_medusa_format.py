"""Medusa checkpoints: both layouts, what people published, and everything that may be wrong with a file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider import CheckpointError, ConfigError
from outrider.formats.medusa import Layout, read_medusa, write_medusa
from outrider.formats.store import provenance
from outrider.models.medusa import LM_HEAD, TOKEN_MAP, MedusaShape
from outrider.target import SharedWeights, Target
from outrider.testing import tiny_target

SHAPE = MedusaShape(num_heads=3, num_layers=1, hidden_size=16, vocab_size=31, num_columns=31, bias=True, output="own")
KEPT = torch.tensor([2, 3, 5, 7, 11, 13, 17])


def random_weights(shape: MedusaShape) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(size, generator=draw) for name, size in shape.tensor_shapes().items()}
    return weights | ({TOKEN_MAP: KEPT} if shape.is_reduced else {})


def written(directory: Path, layout: Layout = "vllm", shape: MedusaShape = SHAPE, **facts: Any) -> dict[str, Tensor]:
    weights = random_weights(shape)
    write_medusa(directory, shape, weights, layout, provenance(tiny_target(), **facts))
    return weights


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_tensors(file: Path, drop: tuple[str, ...] = (), prefix: str = "", **extra: Tensor) -> None:
    tensors = load_file(file) | extra
    save_file({prefix + name: tensor for name, tensor in tensors.items() if name not in drop}, file)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("vllm", SHAPE),
        ("vllm", replace(SHAPE, num_layers=2, bias=False)),
        ("vllm", replace(SHAPE, output="one")),
        ("vllm", replace(SHAPE, num_columns=7)),
        ("vllm", replace(SHAPE, num_columns=7, output="one")),
        ("fasterdecoding", SHAPE),
        ("fasterdecoding", replace(SHAPE, num_layers=2)),
        ("fasterdecoding", replace(SHAPE, output="target")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.output}-{value.num_columns}-{value.num_layers}",
)
def test_a_round_trip_keeps_every_byte(layout: Layout, shape: MedusaShape, tmp_path: Path) -> None:
    facts = {"rank_accuracies": [[0.5, 0.25], [0.25, 0.0], [0.125, 0.0]], "tree": [[0], [0, 0], [1]]}
    weights = written(tmp_path, layout, shape, **facts)
    found = read_medusa(tmp_path, tiny_target())
    assert (found.shape, found.layout) == (shape, layout)
    assert found.accuracies == ((0.5, 0.25), (0.25, 0.0), (0.125, 0.0))
    assert found.tree == ((0,), (0, 0), (1,))
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[name], weights[name]) for name in weights)
    (tmp_path / "again").mkdir()
    write_medusa(tmp_path / "again", found.shape, found.tensors, layout, provenance(tiny_target(), **facts))
    for file in tmp_path.glob("*.*"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_names_of_the_authors_layout(tmp_path: Path) -> None:
    written(tmp_path, "fasterdecoding", replace(SHAPE, num_heads=1, num_layers=2))
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "medusa_lm_head.safetensors").items()}
    assert shapes == {
        "0.0.linear.weight": (16, 16),
        "0.0.linear.bias": (16,),
        "0.1.linear.weight": (16, 16),
        "0.1.linear.bias": (16,),
        "0.2.weight": (31, 16),
    }
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("outrider")
    assert config == {
        "medusa_num_heads": 1,
        "medusa_num_layers": 2,
        "base_model_name_or_path": "tiny-0",
        "version": "2",
    }


def test_the_names_of_vllms_layout(tmp_path: Path) -> None:
    written(tmp_path, "vllm", replace(SHAPE, num_heads=1, num_columns=7))
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert shapes == {
        "blocks.0.layers.0.weight": (16, 16),
        "blocks.0.layers.0.bias": (16,),
        "lm_heads.0.weight": (7, 16),
        "token_map": (7,),
    }
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("outrider")
    assert config == {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "num_heads": 1,
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "vocab_size": 31,
        "truncated_vocab_size": 7,
        "medusa_fc_bias": True,
        "original_lm_head": False,
        "max_paths": 64,
        "topk": 10,
    }


def test_a_prefix_is_dropped(tmp_path: Path) -> None:
    weights = written(tmp_path)
    change_tensors(tmp_path / "model.safetensors", prefix="medusa_heads.")
    found = read_medusa(tmp_path, tiny_target())
    assert all(torch.equal(found.tensors[name], weights[name]) for name in weights)


def test_the_file_says_how_many_heads_the_authors_published(tmp_path: Path) -> None:
    written(tmp_path, "fasterdecoding")
    change_config(tmp_path, medusa_num_heads=2)
    assert read_medusa(tmp_path, tiny_target()).shape.num_heads == 3
    change_config(tmp_path, medusa_num_heads=4)
    with pytest.raises(CheckpointError, match=r"no tensor 3\.0\.linear\.(weight|bias)"):
        read_medusa(tmp_path, tiny_target())


def test_a_stored_copy_of_the_targets_head_is_not_kept_twice(tmp_path: Path) -> None:
    target = tiny_target()
    shape = replace(SHAPE, output="one")
    head_VE = target.shared_weights().head_VE
    write_medusa(tmp_path, shape, random_weights(shape) | {LM_HEAD: head_VE}, "vllm", provenance(target))
    found = read_medusa(tmp_path, target)
    assert found.shape.output == "target"
    assert LM_HEAD not in found.tensors


def test_a_shared_head_under_the_name_of_the_first(tmp_path: Path) -> None:
    """vLLM takes lm_heads.0.weight for the shared head, and ignores the others."""
    weights = written(tmp_path, shape=replace(SHAPE, output="one"))
    spare = {f"lm_heads.{head}.weight": weights[LM_HEAD].clone() for head in range(3)}
    change_tensors(tmp_path / "model.safetensors", drop=(LM_HEAD,), **spare)
    found = read_medusa(tmp_path, tiny_target())
    assert found.shape.output == "one"
    assert torch.equal(found.tensors[LM_HEAD], weights[LM_HEAD])
    change_tensors(tmp_path / "model.safetensors", drop=tuple(spare))
    assert read_medusa(tmp_path, tiny_target()).shape.output == "target"


def test_projections_of_the_whole_vocabulary_are_cut_to_the_token_map(tmp_path: Path) -> None:
    written(tmp_path, shape=replace(SHAPE, num_columns=7))
    whole = {f"lm_heads.{head}.weight": torch.randn(31, 16) for head in range(3)}
    change_tensors(tmp_path / "model.safetensors", **whole)
    found = read_medusa(tmp_path, tiny_target())
    for name, tensor in whole.items():
        assert torch.equal(found.tensors[name], tensor[KEPT])


def test_a_token_map_of_the_whole_vocabulary_is_ignored(tmp_path: Path) -> None:
    written(tmp_path)
    change_tensors(tmp_path / "model.safetensors", token_map=torch.arange(31))
    assert TOKEN_MAP not in read_medusa(tmp_path, tiny_target()).tensors


FILES = {"vllm": "model.safetensors", "fasterdecoding": "medusa_lm_head.safetensors"}


@pytest.mark.parametrize(
    ("layout", "drop", "extra", "message"),
    [
        ("vllm", ("blocks.1.layers.0.bias",), {}, "no tensor blocks.1.layers.0.bias"),
        ("vllm", ("lm_heads.2.weight",), {}, "no tensor lm_heads.2.weight"),
        ("vllm", (), {"blocks.3.layers.0.weight": (16, 16)}, "holds tensor blocks.3.layers.0.weight, which this model"),
        ("vllm", (), {"blocks.1.layers.0.weight": (8, 16)}, r"blocks.1.layers.0.weight .* has shape \(8, 16\), exp"),
        ("vllm", (), {"lm_heads.1.weight": (30, 16)}, "heads for vocabulary size 30, but target tiny-0 has 31"),
        ("vllm", (), {"model.layers.0.mlp.up_proj.weight": (2, 2)}, r"holds a whole model \(Medusa-2\)"),
        ("fasterdecoding", ("2.0.linear.bias",), {}, "no tensor 2.0.linear.bias"),
        ("fasterdecoding", ("1.1.weight",), {}, "no tensor 1.1.weight"),
        ("fasterdecoding", (), {"1.2.weight": (31, 16)}, "holds tensor 1.2.weight"),
        ("fasterdecoding", (), {"0.0.linear.weight": (24, 24)}, "heads for hidden size 24, but target tiny-0 has 16"),
        ("fasterdecoding", (), {"1.1.weight": (32, 16)}, "heads for vocabulary size 32, but target tiny-0 has 31"),
    ],
)
def test_a_wrong_tensor_is_named(
    layout: Layout, drop: tuple[str, ...], extra: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    written(tmp_path, layout)
    change_tensors(tmp_path / FILES[layout], drop, **{name: torch.zeros(size) for name, size in extra.items()})
    with pytest.raises(CheckpointError, match=message):
        read_medusa(tmp_path, tiny_target())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads=0; it must be a positive number"),
        ({"hidden_size": 24}, "hidden size 24, but target tiny-0 has 16"),
        ({"vocab_size": 99, "truncated_vocab_size": None}, "vocabulary size 99, but target tiny-0 has 31"),
        ({"truncated_vocab_size": 7}, "no tensor token_map"),
        ({"logit_scale": 0.5}, "wants logit_scale=0.5, which is not read"),
        ({"outrider": {"rank_accuracies": [[0.5]]}}, "must be 3 lists of shares from 0 to 1"),
        ({"outrider": {"rank_accuracies": [[2], [0], [0]]}}, "must be 3 lists of shares from 0 to 1"),
        ({"outrider": {"rank_accuracies": "many"}}, "must be 3 lists of shares from 0 to 1"),
        ({"outrider": {"tree": [[0], [1, 0]]}}, r"tree in .* has \[1, 0\] where a path of ranks must be"),
        ({"outrider": {"tree": [[0], [0]]}}, r"tree in .* has \[0\]"),
        ({"outrider": {"tree": [0]}}, "tree in .* has 0 where"),
    ],
)
def test_a_wrong_config_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_medusa(tmp_path, tiny_target())


@pytest.mark.parametrize("ids", [[2, 3, 5, 7, 11, 13, 31], [2, 3, 5, 7, 11, 13, -1], [2, 2, 5, 7, 11, 13, 17]])
def test_a_token_map_must_name_tokens_once(ids: list[int], tmp_path: Path) -> None:
    written(tmp_path, shape=replace(SHAPE, num_columns=7))
    change_tensors(tmp_path / "model.safetensors", token_map=torch.tensor(ids))
    with pytest.raises(CheckpointError, match=r"token_map in .* must hold 7 different ids below 31"):
        read_medusa(tmp_path, tiny_target())


def test_pickled_heads_are_refused_with_the_remedy(tmp_path: Path) -> None:
    written(tmp_path, "fasterdecoding")
    (tmp_path / "medusa_lm_head.safetensors").rename(tmp_path / "medusa_lm_head.pt")
    message = r"only pickled weights \(medusa_lm_head.pt\), .* unpickling runs code; convert them to safetensors"
    with pytest.raises(CheckpointError, match=message):
        read_medusa(tmp_path, tiny_target())


def test_another_target_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(CheckpointError, match="was trained for tiny-0, whose embedding differs from that of tiny-1"):
        read_medusa(tmp_path, tiny_target(1))


def test_other_files_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no Medusa heads"):
        read_medusa(tmp_path, tiny_target())


def test_the_authors_layout_has_no_reduced_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reduced vocabulary; use layout=vllm"):
        written(tmp_path, "fasterdecoding", replace(SHAPE, num_columns=7))


class Sized:
    """A target of a published model's size, as far as reading headers asks."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        self.spec = replace(tiny_target().spec, name="full", vocab_size=vocab_size, hidden_size=hidden_size)

    def shared_weights(self) -> SharedWeights:
        raise AssertionError("nothing but headers is needed")


PUBLISHED = {
    "vicuna-7b": (32000, 4096),
    "qwen2.5-7b": (152064, 3584),
    "qwen3-8b": (151936, 4096),
    "llama-3-8b": (128256, 4096),
}


def sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros that takes no room: a header, and a hole behind it."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("layout", ["fasterdecoding", "vllm"])
def test_published_sizes_fit(model: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, width = PUBLISHED[model]
    if layout == "fasterdecoding":
        names: dict[str, tuple[int, ...]] = {f"{head}.0.linear.weight": (width, width) for head in range(5)}
        names |= {f"{head}.0.linear.bias": (width,) for head in range(5)}
        names |= {f"{head}.1.weight": (vocab, width) for head in range(5)}
        config: dict[str, Any] = {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": model}
    else:
        names = {f"blocks.{head}.layers.0.weight": (width, width) for head in range(5)}
        names |= {f"lm_heads.{head}.weight": (vocab, width) for head in range(5)}
        config = {"model_type": "medusa", "architectures": ["MedusaModel"], "num_heads": 5, "num_hidden_layers": 1}
        config |= {"hidden_size": width, "vocab_size": vocab, "max_paths": 64, "topk": 10}
    sparse(tmp_path / FILES[layout], names)
    (tmp_path / "config.json").write_text(json.dumps(config))
    read: list[str] = []
    monkeypatch.setattr("outrider.formats.weights.Weights.__getitem__", lambda self, name: read.append(name))
    target: Target = Sized(vocab, width)  # type: ignore[assignment]
    found = read_medusa(tmp_path, target)
    assert (found.shape.num_heads, found.shape.num_columns, found.shape.output) == (5, vocab, "own")
    assert sorted(read) == sorted(names)
    smaller: Target = Sized(vocab, width - 64)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=f"hidden size {width}, but target full has {width - 64}"):
        read_medusa(tmp_path, smaller)
