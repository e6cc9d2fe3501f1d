"""A target that is described by its files, and loaded when somebody computes with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outrider.errors import CheckpointError, ConfigError
from outrider.models.weight_kinds import WeightsChoice
from outrider.targets import load_target
from outrider.targets.deferred import DeferredTarget
from outrider.testing.directory import write_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_it_says_what_the_loaded_target_says(directory: Path) -> None:
    deferred = DeferredTarget(str(directory), dtype="float32")
    loaded = load_target(str(directory), dtype="float32", device="cpu")
    apart = {"weight_bytes": 0, "batch_invariant": False}
    assert replace(deferred.spec, **apart) == replace(loaded.spec, **apart)  # type: ignore[arg-type]
    assert "loaded" not in vars(deferred)
    assert deferred.tokenizer.encode("abc") == loaded.tokenizer.encode("abc")


def test_it_is_loaded_when_it_must_compute(directory: Path) -> None:
    deferred = DeferredTarget(str(directory), dtype="float32")
    loaded = load_target(str(directory), dtype="float32", device="cpu")
    assert torch.equal(deferred.shared_weights().head_VE, loaded.shared_weights().head_VE)
    states_RE = torch.ones(2, deferred.spec.hidden_size)
    assert torch.equal(deferred.project(states_RE), loaded.project(states_RE))
    plan = deferred.plan(1, 32, 2)
    with deferred.decoding_threads():
        assert deferred.open(plan).cache.plan == loaded.open(plan).cache.plan


@pytest.mark.parametrize("weights", ["stored", "bf16", "int8", "int4"])
def test_its_kinds_of_weights_are_those_of_the_loaded_target(
    weights: WeightsChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    directory = str(write_tiny_model(tmp_path, hidden_size=64, intermediate_size=256, head_dim=16))
    deferred = DeferredTarget(directory, dtype="float32", weights=weights)
    assert deferred.spec.weights == load_target(directory, dtype="float32", weights=weights, device="cpu").spec.weights
    assert "loaded" not in vars(deferred)
    assert deferred.loaded.spec.weights == deferred.spec.weights


def test_kinds_of_weights_that_do_not_fit(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown weights 'int5'; did you mean 'int"):
        DeferredTarget(str(directory), dtype="float32", weights="int5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weights='int8' needs dtype bfloat16 or float32"):
        DeferredTarget(str(directory), dtype="float64", weights="int8")
    assert DeferredTarget(str(directory), dtype="float64").spec.weights == "float64"


def test_files_that_are_not_there(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        DeferredTarget(str(tmp_path), dtype="float32")
    with pytest.raises(ConfigError, match="unknown dtype 'float31'; did you mean 'float32'"):
        DeferredTarget(str(directory), dtype="float31")
