"""Heads broken on purpose, each in one way, and the shipped ones: the doctor names what is wrong, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import outrider
from outrider import load_target
from outrider.doctor.config import DoctorConfig
from outrider.doctor.diagnose import Diagnosis, diagnosed
from outrider.target import Target

pytestmark = pytest.mark.model

HEADS = Path(outrider.__file__).parents[2] / "checkpoints" / "smollm2-135m"
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("smollm2-135m")


def examined(target: Target, head: Path, **options: Any) -> Diagnosis:
    config = DoctorConfig(target="smollm2-135m", drafter=str(head), num_prompts=6, max_new_tokens=32, **options)
    return diagnosed(target, config)


def broken(directory: Path, head: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a shipped head whose config is changed."""
    copy = directory / head
    shutil.copytree(HEADS / head, copy)
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def problems(found: Diagnosis) -> list[str]:
    return [one.check for one in found.findings if one.level == "problem"]


@pytest.mark.parametrize("head", ["eagle3"])
def test_nothing_is_wrong_with_a_shipped_head(target: Target, head: str) -> None:
    found = examined(target, HEADS / head)
    assert problems(found) == []
    assert found.fixed_tau is None


BROKEN = {
    "layers + 1": ("eagle3", {LAYER_IDS: [3, 16, 28]}, "feature layers", "[2, 15, 27]"),
    "layers - 1": ("eagle3", {LAYER_IDS: [1, 14, 26]}, "feature layers", "[2, 15, 27]"),
    "order": ("eagle3", {LAYER_IDS: [27, 15, 2]}, "feature layers", "[2, 15, 27]"),
    "residual": ("eagle3", {"norm_before_residual": True}, "norm flags", "norm_before_residual to false"),
    "output": ("eagle3", {"norm_output": True}, "norm flags", "norm_output to false"),
    "theta": ("eagle3", {"rope_theta": 100.0}, "rope", "rope_theta to 100000"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_thing_wrong_in_the_config_is_named_first(target: Target, tmp_path: Path, name: str) -> None:
    head, change, check, remedy = BROKEN[name]
    found = examined(target, broken(tmp_path, head, lambda config: config.update(change)))
    first = found.findings[0]
    assert (first.check, first.level) == (check, "problem")
    assert remedy in first.remedy
    assert found.tau is not None
    assert found.fixed_tau is not None
    assert found.fixed_tau > found.tau
