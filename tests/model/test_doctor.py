"""Heads broken on purpose, each in one way, and the shipped ones: the doctor names what is wrong, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import outrider
from outrider import load_target
from outrider.doctor.config import DoctorConfig
from outrider.doctor.diagnose import Diagnosis, diagnosed, texts_for
from outrider.doctor.trial import Known
from outrider.target import Target

pytestmark = pytest.mark.model

HEADS = Path(outrider.__file__).parents[2] / "checkpoints" / "smollm2-135m"
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("smollm2-135m")


def config_of(head: Path, **options: Any) -> DoctorConfig:
    return DoctorConfig(target="smollm2-135m", drafter=str(head), num_prompts=6, max_new_tokens=32, **options)


@pytest.fixture(scope="module")
def known(target: Target) -> Known:
    """Answers of the target with all of its states, written once."""
    layers = range(target.spec.num_layers + 2)
    return texts_for(target, config_of(HEADS / "eagle3"), tuple(layers), lambda done, total, words: None)


def problems(found: Diagnosis) -> list[str]:
    return [one.check for one in found.findings if one.level == "problem"]


@pytest.mark.parametrize("head", ["eagle3", "mtp", "medusa", "pard", "draft"])
def test_nothing_is_wrong_with_a_shipped_head(target: Target, known: Known, head: str) -> None:
    found = diagnosed(target, config_of(HEADS / head), known=known)
    assert problems(found) == []
    assert found.fixed_tau is None


def permuted(tensors: Tensors) -> None:
    """The columns' tokens in another order; t2d still marks the same ones."""
    columns = torch.arange(len(tensors["d2t"]))
    ids = tensors["d2t"] + columns
    tensors["d2t"] = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))] - columns


def halves(tensors: Tensors) -> None:
    name = "model.mtp_layers.0.input_proj.weight"
    tensors[name] = torch.cat(tensors[name].chunk(2, dim=1)[::-1], dim=1).contiguous()


def reversed_heads(tensors: Tensors) -> None:
    old = dict(tensors)
    for name in old:
        for head, other in ((0, 2), (2, 0)):
            if name.startswith(f"blocks.{head}."):
                tensors[name] = old[name.replace(f"blocks.{head}.", f"blocks.{other}.")].clone()


Change = Callable[[dict[str, Any]], object] | None
BROKEN: dict[str, tuple[str, Change, Callable[[Tensors], None] | None, str, str]] = {
    "layers": ("eagle3", lambda config: config.update({LAYER_IDS: [3, 16, 28]}), None, "feature layers", "[2, 15, 27]"),
    "flag": ("eagle3", lambda config: config.update(norm_output=True), None, "norm flags", "norm_output to false"),
    "map": ("eagle3", None, permuted, "vocabulary map", "d2t as offsets"),
    "halves": ("mtp", None, halves, "input halves", "swap the two halves"),
    "heads": ("medusa", None, reversed_heads, "order of heads", "stored head 3, 2, 1 is head 1, 2, 3"),
    "mask": ("pard", lambda config: config.update(pard_token=300), None, "mask token", "pard_token to 16"),
    "theta": ("draft", lambda config: config.update(rope_theta=100.0), None, "rope", "rope_theta to 10000"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_thing_that_is_broken_is_named_first(target: Target, known: Known, tmp_path: Path, name: str) -> None:
    head, change, spoil, check, remedy = BROKEN[name]
    copy = tmp_path / head
    shutil.copytree(HEADS / head, copy)
    if change is not None:
        config = json.loads((copy / "config.json").read_text())
        change(config)
        (copy / "config.json").write_text(json.dumps(config))
    if spoil is not None:
        tensors = load_file(copy / "model.safetensors")
        spoil(tensors)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    found = diagnosed(target, config_of(copy), known=known)
    first = found.findings[0]
    assert (first.check, first.level) == (check, "problem")
    assert remedy in first.remedy
    assert found.tau is not None
    assert found.fixed_tau is not None
    assert found.fixed_tau > found.tau


def test_a_head_of_another_target_is_named_and_measured_all_the_same(
    target: Target, known: Known, tmp_path: Path
) -> None:
    copy = tmp_path / "head"
    shutil.copytree(HEADS / "eagle3", copy)
    config = json.loads((copy / "config.json").read_text())
    config["outrider"] |= {"target": "another model", "target_fingerprint": "0" * 16}
    (copy / "config.json").write_text(json.dumps(config))
    found = diagnosed(target, config_of(copy), known=known)
    assert problems(found) == ["target"]
    assert "another model" in found.findings[0].evidence
    assert found.tau is not None
