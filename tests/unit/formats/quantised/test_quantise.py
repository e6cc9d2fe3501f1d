"""Quantising while loading: values, names, the cache, interruptions and refusals."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.formats.hf_config import config_of
from outrider.formats.quantised import quantise as module
from outrider.formats.quantised import quantised_weights
from outrider.models.spec import DecoderSpec
from outrider.ops.quantised import QuantisedMatrix, dequantised
from outrider.ops.rounding import FORMATS, Kind, round_rows
from outrider.records.progress import Progress
from outrider.testing.tiny import tiny_spec, tiny_weights

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "head_dim": 16, "vocab_size": 40}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


def write(directory: Path, seed: int = 0, **changes: object) -> tuple[DecoderSpec, dict[str, Tensor]]:
    spec = tiny_spec(**(SIZES | changes))
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in tiny_weights(spec, seed).items()}
    directory.mkdir(exist_ok=True)
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config_of(spec, torch.bfloat16)))
    return spec, weights


def cached_files(tmp_path: Path) -> list[Path]:
    return sorted(file for file in (tmp_path / "cache" / "quantised").iterdir() if file.suffix != ".lock")


def values(found: Tensor | QuantisedMatrix, step: int = 7) -> np.ndarray:
    assert isinstance(found, QuantisedMatrix)
    num_rows = found.shape[0]
    ranges = [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    return np.concatenate([dequantised(found.format, found.rows(*ends)) for ends in ranges])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_matrices_are_rounded_and_the_rest_stays(kind: Kind, tied: bool, tmp_path: Path) -> None:
    spec, weights = write(tmp_path / "model", tie_word_embeddings=tied, family="qwen2", qkv_bias=True)
    found = quantised_weights(tmp_path / "model", kind)
    assert list(found) == list(spec.weight_shapes())
    assert ("lm_head.weight" in found) is not tied
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            assert torch.equal(found[name], tensor)  # type: ignore[arg-type]
            continue
        own: Kind = "int8" if name in ("model.embed_tokens.weight", "lm_head.weight") else kind
        matrix = found[name]
        assert isinstance(matrix, QuantisedMatrix)
        assert (matrix.format, matrix.shape) == (FORMATS[own], tuple(tensor.shape))
        rounded = round_rows(tensor.float().numpy(), own, name)
        assert (values(matrix) == dequantised(FORMATS[own], rounded)).all()
    with pytest.raises(KeyError):
        found["lm_head.bias"]


def test_a_tied_model_with_another_head_in_its_file_keeps_that_head(tmp_path: Path) -> None:
    spec, weights = write(tmp_path / "model", tie_word_embeddings=True)
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 2}, tmp_path / "model/model.safetensors"
    )
    found = quantised_weights(tmp_path / "model", "int8")
    assert (values(found["lm_head.weight"]) == 2 * values(found["model.embed_tokens.weight"])).all()
    assert not spec.weight_shapes().keys() >= found.keys()


def test_the_cache_is_made_once_per_kind_and_source(tmp_path: Path) -> None:
    write(tmp_path / "model")
    heard: list[Progress] = []
    quantised_weights(tmp_path / "model", "int4", heard.append)
    num_matrices = 2 * 7 + 2
    assert [progress.done for progress in heard] == list(range(num_matrices + 1))
    assert {progress.total for progress in heard} == {num_matrices}
    again: list[Progress] = []
    quantised_weights(tmp_path / "model", "int4", again.append)
    assert again == []
    quantised_weights(tmp_path / "model", "int8", again.append)
    assert len(again) == num_matrices + 1
    assert len(cached_files(tmp_path)) == 2
    write(tmp_path / "model", seed=1)  # other weights of the same size
    found = quantised_weights(tmp_path / "model", "int4")
    weights = load_file(tmp_path / "model/model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert (
        values(found[name]) == dequantised(FORMATS["int4"], round_rows(weights[name].float().numpy(), "int4", ""))
    ).all()


def test_four_bits_take_half_the_space_of_eight(tmp_path: Path) -> None:
    write(tmp_path / "model")
    quantised_weights(tmp_path / "model", "int4")
    [file] = cached_files(tmp_path)
    stored = load_file(file)
    name = "model.layers.0.mlp.down_proj.weight"
    assert stored[f"{name}.codes"].shape == (64, 48)
    assert stored[f"{name}.scales"].dtype == torch.float16


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "other"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path) -> None:
    write(tmp_path / "model")
    before = {
        name: values(found) for name, found in quantised_weights(tmp_path / "model", "int4").items() if "proj" in name
    }
    [file] = cached_files(tmp_path)
    whole = file.read_bytes()
    if damage == "other":
        save_file({"a": torch.zeros(3)}, file)
    else:
        file.write_bytes({"cut": whole[:-5], "header": b"\xff" * 9 + whole[9:], "empty": b""}[damage])
    after = quantised_weights(tmp_path / "model", "int4")
    assert file.read_bytes() == whole
    assert all((values(after[name]) == wanted).all() for name, wanted in before.items())


def test_a_scale_that_is_not_finite_is_found_when_its_row_is_read(tmp_path: Path) -> None:
    write(tmp_path / "model")
    found = quantised_weights(tmp_path / "model", "int4")
    [file] = cached_files(tmp_path)
    stored = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    stored[f"{name}.scales"][3, 1] = float("nan")
    save_file(stored, file)
    matrix = found[name]
    assert isinstance(matrix, QuantisedMatrix)
    matrix.rows(0, 3)
    with pytest.raises(CheckpointError, match="holds nan at"):
        matrix.rows(3, 4)


def test_an_interruption_leaves_no_cache_and_the_next_call_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model")

    def stop(progress: Progress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantised_weights(tmp_path / "model", "int4", stop)
    assert cached_files(tmp_path) == []
    stale = tmp_path / "cache" / "quantised" / f".{next((tmp_path / 'cache/quantised').iterdir()).stem}-killed"
    stale.write_bytes(b"what a killed process leaves")
    quantised_weights(tmp_path / "model", "int4")
    assert len(cached_files(tmp_path)) == 1


def test_a_second_process_waits_and_uses_what_the_first_made(tmp_path: Path) -> None:
    write(tmp_path / "model")
    inside, go_on, heard = threading.Event(), threading.Event(), []

    def first(progress: Progress) -> None:
        inside.set()
        assert go_on.wait(30)

    threads = [threading.Thread(target=quantised_weights, args=(tmp_path / "model", "int8", first))]
    threads[0].start()
    assert inside.wait(30)
    threads.append(threading.Thread(target=quantised_weights, args=(tmp_path / "model", "int8", heard.append)))
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert heard == []
    assert len(cached_files(tmp_path)) == 1


def test_an_unwritable_cache_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "quantised").write_text("a file, where a directory belongs")
    with pytest.raises(CheckpointError, match=r"cannot be written .*; free space or set OUTRIDER_CACHE"):
        quantised_weights(tmp_path / "model", "int8")


def test_a_width_that_is_no_multiple_of_32_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path / "model", intermediate_size=100)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight has rows of 100 features.*; load this model in bf16"):
        quantised_weights(tmp_path / "model", "int4")
    assert not (tmp_path / "cache").exists()


def test_bad_weights_are_refused_and_leave_no_cache(tmp_path: Path) -> None:
    _, weights = write(tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    for value, message in ((float("nan"), "holds nan at"), (1e30, "holds a weight of magnitude 1e")):
        changed = weights[name].clone()
        changed[2, 3] = value
        save_file(weights | {name: changed}, tmp_path / "model/model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            quantised_weights(tmp_path / "model", "int8")
        assert cached_files(tmp_path) == []
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, tmp_path / "model/model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} .* is stored as F8_E4M3"):
        quantised_weights(tmp_path / "model", "int8")


def test_ranges_of_rows_cover_large_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WEIGHTS", 200)  # three rows of 64, two of 96
    _, weights = write(tmp_path / "model")
    found = quantised_weights(tmp_path / "model", "int4")
    for name in ("model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"):
        own: Kind = "int4" if "down" in name else "int8"
        rounded = round_rows(weights[name].float().numpy(), own, name)
        assert (values(found[name]) == dequantised(FORMATS[own], rounded)).all()
