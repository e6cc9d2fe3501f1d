"""Heads of a tiny target, trained until they are right, then broken in one way: the doctor names that way."""

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider.data.texts import Corpus, Example
from outrider.doctor.config import DoctorConfig
from outrider.doctor.diagnose import Diagnosis, diagnosed, texts_for
from outrider.doctor.heads.layer import rearranged
from outrider.doctor.trial import Known
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.train.batch import collate
from outrider.train.objective import Teacher
from outrider.train.objectives import OBJECTIVES

Tensors = dict[str, Tensor]
Change = Callable[[dict[str, Any]], object] | None
Spoil = Callable[[Tensors], object] | None
Trained = Callable[[str], Path]

NUM_LAYERS = 6
HEAD_DIM = 4
NORM = "model.norm.weight"
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
SETTINGS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "eagle3": ("eagle3", 1e-2, {"draft_vocab": 258, "intermediate_size": 64, "num_depths": 2}),
    "residual": ("mtp", 1e-2, {"state": "residual", "num_depths": 2}),
    "normed": ("mtp", 1e-2, {"state": "normed", "num_depths": 2}),
    "medusa": ("medusa", 1e-2, {"num_heads": 3}),
    "dflash": ("dflash", 1e-2, {"num_layers": 2, "block_size": 8, "mask_id": 256}),
    "dflash2": (
        "dflash",
        1e-2,
        {"num_layers": 1, "block_size": 8, "mask_id": 256, "selector_rank": 4, "conv_group_size": 4},
    ),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    place = tmp_path_factory.mktemp("trained") / "model"
    return load_target(str(write_tiny_model(place, num_layers=NUM_LAYERS)), dtype="float64")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["abc", "one two", "xyz", "hello", "the cat", "12345", "a tree", "rain", "8 + 4", "left", "north", "tea"]
    file.write_text("".join(json.dumps({"id": text, "turns": [text]}) + "\n" for text in texts))
    return str(file)


def config_of(prompts: str, drafter: str = "head") -> DoctorConfig:
    return DoctorConfig(target="toy", drafter=drafter, prompts=(prompts,), num_prompts=12, max_new_tokens=32)


@pytest.fixture(scope="module")
def known(target: Target, prompts: str) -> Known:
    return texts_for(target, config_of(prompts), tuple(range(NUM_LAYERS + 2)), lambda *_: None)


@pytest.fixture(scope="module")
def trained(target: Target, known: Known, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return the directory of a head that learnt the texts of the diagnosis, by its name; it is trained once."""
    place = tmp_path_factory.mktemp("heads")

    def head(name: str) -> Path:
        if not (place / name).exists():
            method, rate, settings = SETTINGS[name]
            (place / name).mkdir()
            train(method, rate, settings, target, known).save(place / name, torch.float64)
        return place / name

    return head


def train(method: str, rate: float, settings: dict[str, Any], target: Target, known: Known, steps: int = 80) -> Any:
    module, _, kind_name = OBJECTIVES[method].partition(":")
    kind = getattr(import_module(module), kind_name)
    counts_V = torch.ones(target.spec.vocab_size)
    counts_V[256:] = 0
    corpus = Corpus(counts_V=counts_V, num_tokens=256)
    objective = kind.create(Teacher.of(target, "cpu"), kind.Config(**settings), corpus, 0)
    columns = [known.replay.layers.index(layer) for layer in objective.feature_layers]
    rows = []
    for text in known.texts:
        states = text.known.states_TLE
        assert states is not None
        count = len(states)
        tokens_T = torch.tensor(text.known.tokens[:count])
        learn_T = torch.arange(count) >= len(text.known.prompt)
        rows.append([Example(tokens_T, learn_T, states[:, columns].flatten(1).float())])
    batch, generator = collate(rows, max(len(row[0].tokens_T) for row in rows)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(objective.module.parameters(), rate)
    for _ in range(steps):
        outcome = objective(batch, generator)
        optimizer.zero_grad()
        (outcome.loss / outcome.num_texts).backward()
        optimizer.step()
    return objective


def broken(head: Path, place: Path, change: Change = None, spoil: Spoil = None) -> Path:
    shutil.copytree(head, place)
    if change is not None:
        config = json.loads((place / "config.json").read_text())
        change(config)
        (place / "config.json").write_text(json.dumps(config))
    if spoil is not None:
        tensors = load_file(place / "model.safetensors")
        spoil(tensors)
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return place


def problems(found: Diagnosis) -> list[str]:
    return [one.check for one in found.findings if one.level == "problem"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_trained_head_has_no_complaint(
    target: Target, known: Known, trained: Trained, prompts: str, name: str
) -> None:
    found = diagnosed(target, config_of(prompts, str(trained(name))), known=known)
    assert problems(found) == []
    assert found.fixed_tau is None
    assert found.tau is not None
    assert found.tau > 1.2, "it has learnt its texts"


def turned_heads(tensors: Tensors) -> None:
    """Store head 1 as head 2, 2 as 3 and 3 as 1, each with its output projection."""
    old = dict(tensors)
    for name in old:
        for head in range(3):
            for part in ("blocks.{}.", "lm_heads.{}."):
                if name.startswith(part.format(head)):
                    tensors[name.replace(part.format(head), part.format((head + 1) % 3))] = old[name].clone()


def pairs_interleaved(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[name] = rearranged(tensors[name], HEAD_DIM, False)


def state(value: str) -> Change:
    return lambda config: config["outrider"].update(state=value)


def section(**values: object) -> Change:
    def change(config: dict[str, Any]) -> None:
        for key, value in values.items():
            (config if key in config else config["dflash_config"])[key] = value

    return change


BROKEN: dict[str, tuple[str, Change, Spoil, str, str]] = {
    "layers": ("eagle3", lambda config: config.update({LAYER_IDS: [1, 2, 2]}), None, "feature layers", "[2, 3, 3]"),
    "pairs": ("eagle3", None, pairs_interleaved, "rotary pairs", "from interleaved"),
    "read as normed": ("residual", state("normed"), lambda all: all.pop(NORM), "target state", '"residual"'),
    "order": ("medusa", None, turned_heads, "order of heads", "stored head 2, 3, 1 is head 1, 2, 3"),
    "dflash layers": (
        "dflash",
        section(target_layer_ids=[2, 3, 3, 3, 4]),
        None,
        "feature layers",
        "to [1, 2, 2, 2, 3]",
    ),
    "mask": ("dflash", section(mask_token_id=257), None, "mask token", "mask_token_id to 256"),
    "block": ("dflash", section(block_size=4), None, "block size", "block_size to 8"),
    "causal": ("dflash", lambda config: config.update(is_causal=True), None, "causal layers", "is_causal to false"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_thing_that_is_broken_is_named(
    target: Target, known: Known, trained: Trained, prompts: str, tmp_path: Path, name: str
) -> None:
    head, change, spoil, check, remedy = BROKEN[name]
    place = broken(trained(head), tmp_path / "head", change, spoil)
    found = diagnosed(target, config_of(prompts, str(place)), known=known)
    first = found.findings[0]
    assert (first.check, first.level) == (check, "problem")
    assert remedy in first.remedy
    assert found.tau is not None
    assert found.fixed_tau is not None
    assert found.fixed_tau > found.tau


def test_a_state_before_the_norm_that_was_trained_behind_it_is_named(
    target: Target, known: Known, trained: Trained, prompts: str, tmp_path: Path
) -> None:
    native = target.native
    assert native is not None
    place = broken(
        trained("normed"), tmp_path / "head", state("residual"), lambda all: all.update({NORM: native.norm_E})
    )
    first = diagnosed(target, config_of(prompts, str(place)), known=known).findings[0]
    assert (first.check, first.level) == ("target state", "problem")
    assert '"normed"' in first.remedy


@pytest.mark.parametrize("name", ["eagle3", "medusa", "dflash"])
def test_weights_of_another_target_are_named_without_a_fingerprint(
    trained: Trained, prompts: str, tmp_path: Path, name: str
) -> None:
    """The other target has the same sizes and tokens; the head loads, and reads its states like noise."""
    model = write_tiny_model(tmp_path / "model", seed=1, num_layers=NUM_LAYERS)
    place = broken(trained(name), tmp_path / "head", lambda config: config["outrider"].pop("target_fingerprint"))
    found = diagnosed(load_target(str(model), dtype="float64"), config_of(prompts, str(place)))
    assert "target's states" in problems(found)
    assert all(one.check != "undecided" for one in found.findings)
