"""What is written beside a checkpoint against what was measured: each with a sound case and a broken one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outrider.doctor import settings as settings_module
from outrider.doctor.accuracy import Accuracy
from outrider.doctor.config import DoctorConfig
from outrider.doctor.finding import Finding
from outrider.doctor.settings import asked_settings, settings_findings
from outrider.doctor.written import own_state_findings, training_findings
from outrider.params import SamplingParams
from outrider.tuning.replays.known import KnownText
from outrider.tuning.replays.replay import Reach
from outrider.tuning.replays.texts import Text

TARGET: Any = SimpleNamespace(spec=SimpleNamespace(weights="bf16", max_positions=1000, source=None))


def accuracy(right: list[int], depth: int = 2) -> Accuracy:
    text = Text("t", 0, KnownText((1,) * 100, tuple(range(len(right)))), SamplingParams())
    return Accuracy({text.key: Reach(tuple([depth] * len(right)), tuple(right))}, [text], depth)


def findings(directory: Path, record: dict[str, Any], config: dict[str, Any], base: Accuracy) -> dict[str, Finding]:
    (directory / "training.json").write_text(json.dumps(record))
    (directory / "config.json").write_text(json.dumps(config))
    known: Any = SimpleNamespace(texts=base.texts)
    return {one.check: one for one in training_findings(directory, base, known, TARGET)}


GOOD = accuracy([1, 0] * 20)  # half of the first guesses; its text has 140 tokens
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("accuracy", {"held_out": {"conditional": [0.55]}}, {}, "ok", "50.0% of first guesses are right, 55.0%"),
    ("accuracy", {"held_out": {"conditional": [0.95]}}, {}, "problem", "95.0% on held-out text"),
    ("context", {"train": {"row_length": 140}}, {}, "ok", "the longest text here has 140"),
    ("context", {"train": {"row_length": 139}}, {}, "warn", "1 of 1 are longer"),
    ("reach", {}, {"max_position_embeddings": 512}, "warn", "reads texts of 512 tokens, the target of 1000"),
    ("target's weights", {"target": {"weights": "bf16"}}, {}, "ok", "as in training"),
]


@pytest.mark.parametrize(("check", "record", "config", "level", "words"), CASES)
def test_the_record_of_training_is_compared(
    tmp_path: Path, check: str, record: dict[str, Any], config: dict[str, Any], level: str, words: str
) -> None:
    found = findings(tmp_path, record, config, GOOD)[check]
    assert (found.level, words in found.evidence) == (level, True), found


def test_a_drafter_that_reaches_as_far_as_its_target_is_not_mentioned(tmp_path: Path) -> None:
    assert "reach" not in findings(tmp_path, {}, {"max_position_embeddings": 1000}, GOOD)


def test_other_weights_of_the_target_are_suspected_only_where_accuracy_is_low(tmp_path: Path) -> None:
    record = {"target": {"weights": "Q4_1"}, "held_out": {"conditional": [0.55]}}
    assert findings(tmp_path, record, {}, GOOD)["target's weights"].level == "ok"
    assert findings(tmp_path, record, {}, accuracy([0] * 40))["target's weights"].level == "warn"


@pytest.mark.parametrize(("share", "level"), [(0.0, "ok"), (0.25, "warn")])
def test_prompts_among_the_training_texts_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, level: str
) -> None:
    recorded = {"share": share, "num_prompts": 140}
    monkeypatch.setattr("outrider.doctor.written.recorded_contamination", lambda _: recorded)
    found = findings(tmp_path, {}, {}, GOOD)["overlap"]
    assert (found.level, found.evidence[:4].strip()) == (level, f"{share:.0%} o"[:4].strip())


def test_a_head_that_fails_on_its_own_states_is_told_from_one_that_does_not() -> None:
    # from positions 0, 2, ..: the first guess is right, the second one wrong, though a first guess there is right
    [lost] = own_state_findings(accuracy([1] * 60))
    assert (lost.level, "0.0%, and in 100.0%" in lost.evidence) == ("warn", True)
    [sound] = own_state_findings(accuracy([2] * 60))
    assert sound.level == "ok"


@pytest.mark.parametrize(("rights", "level"), [([2, 2, 2, 2] * 10, "ok"), ([0, 0, 0, 0] * 10, "warn")])
def test_settings_that_change_the_law_are_a_warning_only_where_they_cost(
    monkeypatch: pytest.MonkeyPatch, rights: list[int], level: str
) -> None:
    monkeypatch.setattr(settings_module, "known_texts", lambda *args, **options: None)
    trials: Any = SimpleNamespace(target=TARGET, accuracy=lambda known, variants: accuracy(rights))
    config = DoctorConfig(target="t", drafter="d", temperature=0.7)
    [found] = settings_findings(trials, [], (), accuracy([2, 2, 2, 2] * 10), config, [])
    assert (found.level, "temperature 0.7" in found.evidence) == (level, True)
    assert settings_findings(trials, [], (), GOOD, DoctorConfig(target="t", drafter="d", temperature=0.0), []) == []


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repetition_penalty": 1.0}, {}),
        ({"do_sample": True, "temperature": "hot"}, {}),
    ],
)
def test_settings_are_read_from_the_targets_file(tmp_path: Path, values: dict[str, Any], asked: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    target: Any = SimpleNamespace(spec=SimpleNamespace(source=str(tmp_path)))
    assert asked_settings(target, DoctorConfig(target="t", drafter="d")) == asked
