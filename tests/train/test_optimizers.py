"""Muon beside AdamW: which weights each takes, what an update looks like, and exact resuming."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from toys import play, setup, small

from outrider.data.texts import Corpus
from outrider.errors import ConfigError
from outrider.testing import tiny_target
from outrider.train.config import TrainConfig
from outrider.train.loop import Progress
from outrider.train.objective import Teacher
from outrider.train.objectives import OBJECTIVES
from outrider.train.objectives.eagle3 import Eagle3Objective
from outrider.train.optimizers.build import optimizer_of

RATE = 0.01
INNER = {"fc.weight"} | {
    f"midlayer.{name}.weight"
    for name in (*(f"self_attn.{part}_proj" for part in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
}


@pytest.fixture
def objective() -> Eagle3Objective:
    target = tiny_target(dtype=torch.float32)
    counts_V = torch.ones(target.spec.vocab_size, dtype=torch.int64)
    corpus = Corpus(counts_V=counts_V, num_tokens=int(counts_V.sum()))
    return Eagle3Objective.create(Teacher.of(target, "cpu"), Eagle3Objective.Config(draft_vocab=20), corpus, 0)


def step(objective: Eagle3Objective, config: TrainConfig) -> dict[str, torch.Tensor]:
    """Take one step on gradients whose singular values spread over three powers of ten; return the changes."""
    optimizer, generator = optimizer_of(objective, config), torch.Generator().manual_seed(0)
    named = dict(objective.module.named_parameters())
    before = {name: one.detach().clone() for name, one in named.items()}
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            left, values, right = torch.linalg.svd(parameter.grad, full_matrices=False)
            parameter.grad = left * torch.logspace(0, -3, len(values)) @ right
    optimizer.step()
    return {name: one.detach() - before[name] for name, one in named.items()}


def test_muon_moves_inner_matrices_alike_in_every_direction(objective: Eagle3Objective) -> None:
    changes = step(objective, TrainConfig(learning_rate=RATE, optimizer="muon"))
    for name, change in changes.items():
        if name in INNER:
            # an orthogonal matrix of this shape, with entries of root mean square 0.2 * rate where it is square
            values = torch.linalg.svdvals(change) / (0.2 * max(change.shape) ** 0.5 * RATE)
            assert values[0] < 1.3, name
            assert values[len(values) // 2] > 0.5, name
        else:  # AdamW's first step: the rate, by the gradient's sign
            assert change.abs().min() > 0.99 * RATE, name
            assert change.abs().max() < 1.01 * RATE, name
    assert set(changes) > INNER


def test_adamw_moves_every_number_by_the_rate(objective: Eagle3Objective) -> None:
    for name, change in step(objective, TrainConfig(learning_rate=RATE, optimizer="adamw")).items():
        assert change.abs().max() < 1.01 * RATE, name
        assert change.abs().median() > 0.98 * RATE, name


class KilledError(Exception):
    """The process is gone."""


def test_a_killed_run_with_muon_ends_with_the_same_bits(tmp_path: Path) -> None:
    def kill(at: Progress) -> None:
        if at.step == 5:
            raise KilledError

    config = small(optimizer="muon", learning_rate=0.01)
    play(setup(config), tmp_path / "whole")
    with pytest.raises(KilledError):
        play(setup(config), tmp_path / "cut", listen=kill)
    play(setup(config), tmp_path / "cut", resume=True)
    files = [tmp_path / name / "final" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    play(setup(small(learning_rate=0.01)), tmp_path / "adamw")
    assert files[0].read_bytes() != (tmp_path / "adamw" / "final" / "model.safetensors").read_bytes()


def test_a_run_from_before_there_was_a_choice_is_resumed(tmp_path: Path) -> None:
    play(setup(small()), tmp_path)
    record = tmp_path / "config.json"
    kept = json.loads(record.read_text())
    assert kept["train"].pop("optimizer") == "adamw"
    record.write_text(json.dumps(kept))
    assert play(setup(small()), tmp_path, resume=True)["steps"] == 13


def test_auto_is_muon_for_random_weights_and_adamw_for_what_starts_trained() -> None:
    chosen = TrainConfig().resolved("cpu", starts_trained=False)
    assert (chosen.optimizer, chosen.peak, chosen.precision) == ("muon", 1e-3, "fp32")
    chosen = TrainConfig().resolved("cuda", starts_trained=True)
    assert (chosen.optimizer, chosen.peak, chosen.precision) == ("adamw", 1e-4, "bf16")
    assert TrainConfig(learning_rate=0.5).resolved("cpu", starts_trained=False).peak == 0.5
    assert chosen.resolved("cpu", starts_trained=False) == chosen
    places = {name: place.partition(":") for name, place in OBJECTIVES.items()}
    classes = {name: getattr(import_module(module), kind) for name, (module, _, kind) in places.items()}
    trained = {name for name, kind in classes.items() if kind.starts_trained(kind.Config())}
    assert trained == {"draft", "medusa", "mtp", "pard"}
    assert Eagle3Objective.starts_trained(Eagle3Objective.Config(start_layer=-1))


def test_another_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer=sgd must be auto, adamw or muon"):
        TrainConfig(optimizer="sgd")  # type: ignore[arg-type]
