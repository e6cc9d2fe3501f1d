"""A target that drafts for itself is always right; a copy with one thing broken is not, and the doctor names it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from outrider.cli import main
from outrider.doctor.config import DoctorConfig
from outrider.doctor.diagnose import Diagnosis, diagnosed
from outrider.doctor.heads.eagle3 import stored_findings
from outrider.doctor.heads.kinds import method_of
from outrider.doctor.heads.layer import rearranged
from outrider.doctor.price import break_even
from outrider.doctor.stored import tensor_findings
from outrider.errors import CheckpointError, ConfigError
from outrider.formats.eagle3 import write_native
from outrider.proposers.eagle3 import random_checkpoint
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def target(model: Path) -> Target:
    return load_target(str(model), dtype="float64")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["abc abc", "one two three", "xyz", "hello there", "the cat sat", "12345"]
    file.write_text("".join(json.dumps({"id": text, "turns": [text]}) + "\n" for text in texts))
    return str(file)


def copied(model: Path, place: Path, config: Change | None = None, tensors: Change | None = None) -> Path:
    shutil.copytree(model, place)
    if config is not None:
        values = json.loads((place / "config.json").read_text())
        config(values)
        (place / "config.json").write_text(json.dumps(values))
    if tensors is not None:
        weights = load_file(place / "model.safetensors")
        tensors(weights)
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


def examined(target: Target, drafter: Path, prompts: str, **options: Any) -> Diagnosis:
    config = DoctorConfig(
        target="toy", drafter=str(drafter), prompts=(prompts,), num_prompts=6, max_new_tokens=24, **options
    )
    return diagnosed(target, config)


def problems(found: Diagnosis) -> list[str]:
    return [one.check for one in found.findings if one.level == "problem"]


def moved_norms(weights: dict[str, torch.Tensor]) -> None:
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] = weights[name] - 1


def interleaved(weights: dict[str, torch.Tensor]) -> None:
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = rearranged(weights[name], 4, False)


def test_a_perfect_drafter_has_no_complaint(target: Target, model: Path, prompts: str) -> None:
    found = examined(target, model, prompts)
    assert problems(found) == []
    assert found.method == "draft_model"
    assert found.depths[0].accepted == 1.0
    assert found.fixed_tau is None


@pytest.mark.parametrize(
    ("check", "remedy", "config", "tensors"),
    [
        ("rope", "rope_theta to 10000", lambda config: config.update(rope_theta=3.0), None),
        (
            "rope",
            "rope_scaling to null",
            lambda config: config.update(rope_scaling={"rope_type": "linear", "factor": 9.0}),
            None,
        ),
        ("norm weights", "add 1 to the weights", None, moved_norms),
        ("rotary pairs", "from interleaved rotary pairs", None, interleaved),
    ],
)
def test_one_thing_broken_is_named_first(
    target: Target,
    model: Path,
    prompts: str,
    tmp_path: Path,
    check: str,
    remedy: str,
    config: Change | None,
    tensors: Change | None,
) -> None:
    drafter = copied(model, tmp_path / "drafter", config, tensors)
    found = examined(target, drafter, prompts, fix=True)
    first = found.findings[0]
    assert (first.check, first.level) == (check, "problem")
    assert remedy in first.remedy
    # the copy that was written is perfect again, and the drafter is as it was
    fixed = tmp_path / "drafter-fixed"
    assert found.output == str(fixed)
    assert examined(target, fixed, prompts).depths[0].accepted == 1.0
    assert examined(target, drafter, prompts).depths[0].accepted < 0.9


def test_two_things_broken_are_both_named(target: Target, model: Path, prompts: str, tmp_path: Path) -> None:
    drafter = copied(model, tmp_path / "drafter", lambda config: config.update(rope_theta=500.0), moved_norms)
    found = examined(target, drafter, prompts)
    assert {"rope", "norm weights"} <= {*problems(found)}
    assert found.fixed_depths[0].accepted == 1.0


def test_a_strangers_tokenizer_is_named_although_nothing_loads(
    target: Target, model: Path, prompts: str, tmp_path: Path
) -> None:
    drafter = copied(model, tmp_path / "drafter")
    file = drafter / "tokenizer.json"
    values = json.loads(file.read_text())
    vocab = values["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    file.write_text(json.dumps(values))
    found = examined(target, drafter, prompts, fix=True)
    assert found.tau is None
    assert problems(found) == ["tokenizer", "loading"]
    assert found.fixed_depths[0].accepted == 1.0
    assert not (tmp_path / "drafter-fixed" / "tokenizer.json").exists()


def test_another_chat_template_is_seen(target: Target, model: Path, prompts: str, tmp_path: Path) -> None:
    drafter = copied(model, tmp_path / "drafter")
    (drafter / "chat_template.jinja").write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    [finding] = [one for one in examined(target, drafter, prompts).findings if one.check == "chat template"]
    assert finding.level == "warn"  # this drafter is always right, in any form
    assert "with its own" in finding.evidence


def test_settings_that_change_the_law_are_compared(target: Target, model: Path, prompts: str) -> None:
    found = examined(target, model, prompts, temperature=1.5, repetition_penalty=1.2)
    [finding] = [one for one in found.findings if one.check == "generation settings"]
    assert "temperature 1.5, repetition_penalty 1.2" in finding.evidence


def test_values_that_no_training_leaves_are_named(model: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    spoiled: dict[str, tuple[Change, str]] = {
        "nan": (lambda weights: weights[name].__setitem__((0, 0), float("nan")), "1 values that are not finite"),
        "zeros": (lambda weights: weights[name].zero_(), "holds zeros alone"),
        "huge": (lambda weights: weights[name].mul_(1e6), "reaches"),
    }
    assert [one.level for one in tensor_findings(model)] == ["ok"]
    for place, (change, words) in spoiled.items():
        [finding] = tensor_findings(copied(model, tmp_path / place, tensors=change))
        assert finding.level == "problem"
        assert f"{name}" in finding.evidence
        assert words in finding.evidence


def test_break_even_decides_by_tau() -> None:
    # a drafted step costs 1.5 plain steps: tau 1.8 gains 1.8 / 1.5 = 1.2, tau 1.4 loses
    assert break_even(1.8, 1.5, 4, "by hand").level == "ok"
    assert "about 1.20 times" in break_even(1.8, 1.5, 4, "by hand").evidence
    assert break_even(1.4, 1.5, 4, "by hand").level == "warn"


def test_a_map_of_ids_is_named_although_it_is_read_here(target: Target, tmp_path: Path) -> None:
    vocab_size, ids_K = target.spec.vocab_size, torch.tensor([3, 7, 250, 257])
    for name, d2t_K, level in (("offsets", ids_K - torch.arange(4), []), ("ids", ids_K, ["problem"])):
        assert int((ids_K + torch.arange(4)).max()) >= vocab_size  # as offsets, these ids leave the vocabulary
        (tmp_path / name).mkdir()
        save_file({"d2t": d2t_K}, tmp_path / name / "model.safetensors")
        assert [one.level for one in stored_findings(tmp_path / name, target)] == level


def test_the_command_ends_with_json_and_a_status_for_scripts(
    target: Target, model: Path, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "head"
    head.mkdir()
    write_native(head, random_checkpoint(target, 3), torch.float32)
    words = ["doctor", str(model), str(head), "--dtype", "float64", "--prompts", prompts, "--max-new-tokens", "16"]
    assert main(words) == 3
    out = capsys.readouterr().out.strip().splitlines()
    found = json.loads(out[-1])
    assert found["method"] == "eagle3"
    assert any(one["check"] == "accuracy" and one["level"] == "problem" for one in found["findings"])
    assert main(["doctor", str(model)]) == 2
    assert "drafters" in capsys.readouterr().err


def test_what_is_no_drafter_is_refused(target: Target, tmp_path: Path, prompts: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="METHOD:checkpoint="):
        method_of(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint to diagnose"):
        examined(target, Path("ngram"), prompts)
