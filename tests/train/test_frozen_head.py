"""A frozen output head: it stays the target's while the rest learns, and a run with it is resumed as it is."""

import json
from pathlib import Path

import pytest
import torch
from toys import play, setup, small

from outrider.data.texts import Corpus
from outrider.errors import ConfigError
from outrider.formats.weights import read_weights
from outrider.testing import tiny_target
from outrider.train.estimate import num_parameters
from outrider.train.objective import Teacher
from outrider.train.objectives.eagle3 import Eagle3Objective, Eagle3ObjectiveConfig
from outrider.train.objectives.peagle import PEagleObjective, PEagleObjectiveConfig

FROZEN = Eagle3ObjectiveConfig(draft_vocab=20, num_depths=2, train_head=False)


def test_the_head_stays_the_targets_while_the_rest_learns(tmp_path: Path) -> None:
    request = setup(small(), method="eagle3", objective=Eagle3Objective, settings=FROZEN)
    play(request, tmp_path)
    stored, d2t = read_weights(tmp_path / "final"), read_weights(tmp_path / "final").integers("d2t")
    ids_K = d2t + torch.arange(20)
    assert torch.equal(stored["lm_head.weight"].float(), request.target.shared_weights().head_VE[ids_K].float())
    started = Eagle3Objective.create(Teacher.of(request.target, "cpu"), FROZEN, corpus(), 0).network.state_dict()
    assert not torch.equal(stored["fc.weight"].float(), started["fc.weight"])
    # a run that ended is resumed with the head as it was trained, and with no other
    assert play(request, tmp_path, resume=True)["steps"] > 0


def corpus() -> Corpus:
    counts_V = torch.arange(31)
    return Corpus(counts_V=counts_V, num_tokens=int(counts_V.sum()))


@pytest.mark.parametrize(
    ("objective", "config"),
    [(Eagle3Objective, Eagle3ObjectiveConfig), (PEagleObjective, PEagleObjectiveConfig)],
)
def test_a_frozen_head_is_no_trained_weight(objective: type, config: type) -> None:
    teacher = Teacher.of(tiny_target(dtype=torch.float32), "cpu")
    whole, frozen = (
        num_parameters(objective.create(teacher, config(draft_vocab=20, train_head=flag), corpus(), 0))
        for flag in (True, False)
    )
    assert whole - frozen == 20 * 16  # columns x hidden size


def test_a_run_from_before_there_was_a_choice_is_resumed(tmp_path: Path) -> None:
    settings = Eagle3ObjectiveConfig(draft_vocab=20, num_depths=2)
    request = setup(small(), method="eagle3", objective=Eagle3Objective, settings=settings)
    steps = play(request, tmp_path)["steps"]
    record = tmp_path / "config.json"
    kept = json.loads(record.read_text())
    assert kept["settings"].pop("train_head") is True
    record.write_text(json.dumps(kept))
    assert play(request, tmp_path, resume=True)["steps"] == steps


@pytest.mark.parametrize("config", [Eagle3ObjectiveConfig, PEagleObjectiveConfig])
def test_a_head_of_random_numbers_is_not_frozen(config: type) -> None:
    with pytest.raises(ConfigError, match="train_head=False must be true without start_head"):
        config(start_head=False, train_head=False)
