"""The catalogue of published drafters, and what is listed for a target, without a network."""

import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

from outrider.catalogue.drafters import Drafter, drafters_of
from outrider.catalogue.published import base_name, layouts, published
from outrider.catalogue.target_files import facts_of
from outrider.errors import CheckpointError, ConfigError, RunError
from outrider.formats import locate, shipped
from outrider.formats.store import provenance, write_checkpoint
from outrider.proposers import proposer_names
from outrider.proposers.method_spec import load_method, method_specs
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model

LLAMA_8B = {"vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "model_type": "llama"}
"""Sizes of the published Llama-3.1-8B-Instruct, which its EAGLE-3 heads repeat."""
TARGET = "meta-llama/Llama-3.1-8B-Instruct"
HEAD = "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"
HEAD_CONFIG = {"vocab_size": 128256, "hidden_size": 4096, "draft_vocab_size": 32000}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""

    def refuse(*_: object) -> None:
        raise OSError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(hub: Path, hub_id: str, config: Mapping[str, Any], weights: str = "model.safetensors") -> Path:
    """Write a repository as the hub's client keeps it."""
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / weights).write_bytes(b"")
    return snapshot


def named(found: list[Drafter], name: str) -> Drafter:
    return next(one for one in found if one.name == name)


def test_every_entry_is_complete_and_stands_once() -> None:
    entries = published()
    assert len({one.drafter for one in entries}) == len(entries) > 100
    for one in entries:
        assert one.targets
        assert one.source
        assert one.licence
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in (one.drafter, *one.targets)), one


def test_a_layout_names_a_method_and_sizes_or_says_why_not() -> None:
    for name, layout in layouts().items():
        assert (layout.method in proposer_names() and layout.sizes) != bool(layout.reason), name


@pytest.mark.parametrize(
    ("target", "drafter"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "amd/PARD-Qwen2.5-0.5B"),
        ("Qwen/Qwen3-8B", "RedHatAI/Qwen3-8B-speculator.eagle3"),
        ("meta-llama/Llama-3.1-8B-Instruct", HEAD),
        ("openai/gpt-oss-120b", "nvidia/gpt-oss-120b-Eagle3-v2"),
        ("google/gemma-4-31B-it", "RedHatAI/gemma-4-31B-it-speculator.eagle3"),
    ],
)
def test_common_targets_have_heads_that_can_be_fetched(target: str, drafter: str) -> None:
    found = named(drafters_of(target), drafter)
    assert (found.is_local, found.fits, found.is_ready) == (False, None, False)
    assert f"hf download {drafter}" in found.why
    assert method_specs([found.text or ""])[0].settings == {"checkpoint": drafter}


def test_a_layout_that_is_not_read_is_listed_with_the_reason() -> None:
    found = named(drafters_of("Qwen/Qwen3-8B"), "JetSpec/jetspec-qwen3-8b")
    assert (found.text, found.fits) == (None, False)
    assert "JetSpec" in found.why


@pytest.mark.parametrize(
    "name",
    [
        "bartowski/Qwen3-8B-GGUF",
        "/models/qwen3-8b-Q4_K_M.gguf",
        "Qwen3-8B-UD-Q4_K_XL.gguf",
        "Qwen/Qwen3-8B-AWQ",
        "Qwen/Qwen3-8B-FP8",
        "x/Qwen3-8B-quantized.w4a16",
        "Qwen3-8B-IQ4_XS-00001-of-00002.gguf",
        "Qwen3-8B-GPTQ-Int4",
    ],
)
def test_a_quantised_copy_is_the_same_target(name: str) -> None:
    assert base_name(name) == "qwen3-8b"


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B-Base", "Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Instruct-2507"])
def test_another_model_is_another_target(name: str) -> None:
    assert base_name(name) != "qwen3-8b"
    assert "RedHatAI/Qwen3-8B-speculator.eagle3" not in {one.name for one in drafters_of(name)}


def test_a_cached_head_with_the_targets_sizes_is_ready(hub: Path) -> None:
    target = put(hub, "meta-llama/Llama-3.1-8B-Instruct", LLAMA_8B)
    put(hub, HEAD, HEAD_CONFIG)
    for name in ("meta-llama/Llama-3.1-8B-Instruct", str(target)):  # a snapshot's path holds the name too
        found = named(drafters_of(name), HEAD)
        assert found.is_ready
        assert found.why == "vocabulary 128256 and hidden size 4096 as the target"
    joined = [one for one in drafters_of("meta-llama/Llama-3.1-8B-Instruct") if one.kind == "combined"]
    assert [method_specs([one.text or ""])[0].settings for one in joined] == [{"checkpoint": HEAD}]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({**HEAD_CONFIG, "target_hidden_size": 3584}, "hidden size 3584, but the target has 4096"),
        ({**HEAD_CONFIG, "vocab_size": 151936}, "vocabulary 151936, but the target has 128256"),
        ({"transformer_layer_config": {"hidden_size": 5120}}, "hidden size 5120, but the target has 4096"),
    ],
)
def test_a_head_of_another_size_is_refused(hub: Path, config: Mapping[str, Any], why: str) -> None:
    put(hub, "meta-llama/Llama-3.1-8B-Instruct", LLAMA_8B)
    put(hub, HEAD, config)
    found = named(drafters_of("meta-llama/Llama-3.1-8B-Instruct"), HEAD)
    assert (found.is_local, found.fits) == (True, False)
    assert why in found.why


def test_a_head_that_counts_its_columns_as_vocabulary_fits(hub: Path) -> None:
    put(hub, "meta-llama/Llama-3.1-8B-Instruct", LLAMA_8B)
    put(hub, HEAD, {**HEAD_CONFIG, "vocab_size": 32000})
    assert named(drafters_of("meta-llama/Llama-3.1-8B-Instruct"), HEAD).is_ready


def test_a_draft_model_with_fewer_rows_names_the_remedy(hub: Path) -> None:
    put(hub, "Qwen/Qwen2.5-7B-Instruct", {"vocab_size": 152064, "hidden_size": 3584, "model_type": "qwen2"})
    put(hub, "Qwen/Qwen2.5-0.5B-Instruct", {"vocab_size": 151936, "hidden_size": 896})
    found = named(drafters_of("Qwen/Qwen2.5-7B-Instruct"), "Qwen/Qwen2.5-0.5B-Instruct")
    assert found.fits is False
    assert "pad_draft" in found.why
    assert found.licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("error", "fits", "why"),
    [
        (None, True, "as the target; `hf download"),
        (RepositoryNotFoundError, False, "no such repository"),
        (GatedRepoError, False, "gated"),
        (EntryNotFoundError, False, "no config.json"),
    ],
)
def test_online_a_config_is_fetched_and_compared_before_any_weights(
    error: type[Exception] | None, fits: bool, why: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(name: str, file: str, etag_timeout: float) -> None:
        asked.append(name)
        if name == TARGET:
            put(hub, name, LLAMA_8B, weights="README.md")
        elif name == HEAD and error is None:
            put(hub, name, HEAD_CONFIG, weights="README.md")
        elif name == HEAD and error is not None:
            raise error.__new__(error)

    monkeypatch.setattr("outrider.catalogue.hub.hf_hub_download", download)
    found = named(drafters_of(TARGET, online=True), HEAD)
    assert (found.is_local, found.fits, found.is_ready) == (False, fits, False)
    assert why in found.why
    assert TARGET in asked
    assert "amd/PARD2-Llama-3.1-8B" not in asked  # no method reads it, so nobody asks


def test_a_hub_that_cannot_be_reached_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own attempts
    with pytest.raises(RunError, match=r"the hub cannot be reached .*leave out --online"):
        drafters_of(TARGET, online=True)


def test_pickled_weights_are_refused(hub: Path) -> None:
    put(hub, "lmsys/vicuna-7b-v1.3", {"vocab_size": 32000, "hidden_size": 4096})
    put(hub, "FasterDecoding/medusa-vicuna-7b-v1.3", {"medusa_num_heads": 2}, weights="medusa_lm_head.pt")
    found = named(drafters_of("lmsys/vicuna-7b-v1.3"), "FasterDecoding/medusa-vicuna-7b-v1.3")
    assert found.fits is False
    assert "pickled" in found.why


@pytest.mark.parametrize(("family", "is_read"), [("mimo", True), ("deepseek_v3", False)])
def test_prediction_modules_of_the_target_are_listed(hub: Path, family: str, is_read: bool) -> None:
    config = {"model_type": family, "num_nextn_predict_layers": 1, "vocab_size": 151680, "hidden_size": 4096}
    directory = put(hub, "somebody/modules", config)
    found = named(drafters_of("somebody/modules"), "1 prediction module of its own")
    assert found.fits is is_read
    assert (found.text is not None and str(directory) in found.text) is is_read


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two targets of one size, and a directory of heads with one for the first."""
    root = tmp_path_factory.mktemp("models")
    found = {name: write_tiny_model(root / name, seed, num_layers=4) for seed, name in enumerate(("one", "other"))}
    head = root / "heads" / "one" / "eagle3"
    head.mkdir(parents=True)
    target = load_target(str(found["one"]), dtype="float64")
    write_checkpoint(head, {"x": torch.zeros(1)}, {"outrider": provenance(target)})
    return found | {"heads": root / "heads"}


def test_a_shipped_head_is_found_by_its_targets_weights(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "head_roots", lambda: [models["heads"]])
    monkeypatch.setattr("outrider.catalogue.drafters.head_roots", lambda: [models["heads"]])
    for name, is_there in (("one", True), ("other", False)):
        for target in (models[name], load_target(str(models[name]), dtype="float64")):
            kinds = [one.layout for one in drafters_of(target) if one.kind == "shipped"]
            assert kinds == (["outrider"] if is_there else [])


def test_what_is_ready_loads(models: dict[str, Path]) -> None:
    target = load_target(str(models["other"]), dtype="float64")
    ready = [one.text or "" for one in drafters_of(target) if one.is_ready]
    assert [text.partition(":")[0] for text in ready] == ["ngram", "suffix", "draft_model"]
    for spec in method_specs(ready):
        assert load_method(spec, target).spec.max_nodes > 0


def test_the_embedded_target_has_its_shipped_heads() -> None:
    heads = {one.name for one in drafters_of("smollm2-135m") if one.kind == "shipped"}
    assert heads == {
        f"smollm2-135m/{path.parent.name}" for path in locate.head_roots()[1].glob("smollm2-135m/*/config.json")
    }
    assert facts_of("HuggingFaceTB/SmolLM2-135M-Instruct").directory is None
    assert {one.name for one in drafters_of("HuggingFaceTB/SmolLM2-135M-Instruct") if one.kind == "shipped"} == heads


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("", ConfigError, "hub id"),
        ("no such/name at all", ConfigError, "hub id"),
        ("missing.gguf", CheckpointError, "missing.gguf does not exist"),
    ],
)
def test_a_name_that_is_no_model_is_refused(name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        drafters_of(name)


@pytest.mark.parametrize("reference", [b"\xff\xfe", b"", b"../..", b"\x00"])
def test_a_damaged_copy_in_the_cache_counts_as_none(reference: bytes, hub: Path, tmp_path: Path) -> None:
    target = tmp_path / "Llama-3.1-8B-Instruct"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(LLAMA_8B))
    put(hub, HEAD, HEAD_CONFIG).parents[1].joinpath("refs", "main").write_bytes(reference)
    assert named(drafters_of(target), HEAD).is_ready is False


def test_a_name_that_the_hub_does_not_allow_is_on_no_disk() -> None:
    assert facts_of("a--b/c..d").has_files is False


def test_a_target_of_a_million_million_layers_lists_none_of_them(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_8B | {"num_hidden_layers": 10**12}))
    assert not any(one.kind == "target" for one in drafters_of(tmp_path / "model"))
