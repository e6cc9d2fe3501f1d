"""`outrider train`, end to end on a tiny model: every method, resuming, and what a user can get wrong."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from invoking import sentence, status_of

from outrider.cli import main
from outrider.cli.commands.train import _objective
from outrider.data.shards import MANIFEST, SCHEMA, Text, prompt_hash, write_shard
from outrider.engine import Engine
from outrider.formats.store import fingerprint
from outrider.proposers import load_proposer
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.targets import load_target
from outrider.train.loop import Trainer
from outrider.train.objectives import OBJECTIVES

NUM_TEXTS, ANSWER = 24, 20


@pytest.fixture(scope="session")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `outrider synthesize` would write: greedy answers of the tiny model."""
    directory = tmp_path_factory.mktemp("data")
    target = load_target(str(tiny_model), dtype="float32", device="cpu")
    prompts = [f"prompt {index}" for index in range(NUM_TEXTS)]
    encoded = [list(target.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    engine = Engine(target, NoProposer(), max_batch=8, max_len=64)
    answers = engine.generate([list(one) for one in encoded], SamplingParams(max_tokens=ANSWER, ignore_eos=True))
    texts = []
    for prompt, read, answer in zip(prompts, encoded, answers, strict=True):
        learn = (False,) * len(read) + (True,) * len(answer.tokens)
        texts.append(Text((*read, *answer.tokens), learn, prompt_hash(prompt)))
    of = {"name": "tiny", "fingerprint": fingerprint(target)}
    manifest = {"schema": SCHEMA, "target": of, "settings": {"heldout_fraction": 0.25}}
    (directory / MANIFEST).write_text(json.dumps(manifest))
    write_shard(directory / "shard-00000.safetensors", texts, {"target_fingerprint": of["fingerprint"]})
    return directory


def train(method: str, *more: object) -> int:
    return status_of("train", method, *more)


def small(tiny_model: Path, data: Path, output: Path) -> list[object]:
    given: list[object] = ["--target", tiny_model, "--dtype", "float32", "--device", "cpu", "--data", data]
    given += ["--run-dir", output, "--row-length", 64, "--epochs", 1, "--real-tau-prompts", 2, "--real-tau-tokens", 8]
    return given


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_trains_and_what_it_wrote_runs(
    method: str, tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(method, *small(tiny_model, data, tmp_path / "run")) == 0
    report = last_line(capsys)
    assert report["method"] == method
    assert report["steps"] == len([step for step, _ in report["loss_curve"]]) > 0
    assert report["held_out"]["num_anchors"] > 0
    assert report["decoded"]["num_tokens"] > 0
    target = load_target(str(tiny_model), dtype="float32", device="cpu")
    for name in ("best", "final"):
        if (tmp_path / "run" / name).exists():
            load_proposer(_objective(method).method, target, checkpoint=str(tmp_path / "run" / name))
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    assert f"--method {_objective(method).method}:checkpoint=DIRECTORY" in card
    assert f"**{report['held_out']['tau']:.3f}**" in card


def test_it_says_what_it_will_do(
    tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("medusa", *small(tiny_model, data, tmp_path / "run"), "--features", "cached") == 0
    said = capsys.readouterr().err
    for part in ("million trained weights", "written by the target", "steps,", "memory on cpu: about", "capturing"):
        assert part in said
    assert " · tau " in said.splitlines()[-1]
    assert len(list(data.glob("features-*"))) == 2


def test_an_interrupted_run_is_resumed_from_its_directory_alone(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = ("--rows", 1, "--real-tau-every", 0, "--eval-every", 1, "--save-dtype", "float32")
    assert train("medusa", *small(tiny_model, data, tmp_path / "whole"), *more) == 0
    advance = Trainer._advance

    def interrupted(self: Trainer) -> bool:
        if self.progressed.step == 1:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Trainer, "_advance", interrupted)
    assert train("medusa", *small(tiny_model, data, tmp_path / "cut"), *more) == 130
    monkeypatch.undo()
    assert f"resume with: outrider train medusa --resume {tmp_path / 'cut'}" in capsys.readouterr().err
    assert train("medusa", "--resume", tmp_path / "cut") == 0
    assert last_line(capsys)["steps"] > 2
    names = ("final/model.safetensors", "best/model.safetensors", "final/config.json")
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_user_can_get_wrong(
    tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = tmp_path / "run", small(tiny_model, data, tmp_path / "run")
    assert train("medusa", *base, "--real-tau-every", 0) == 0
    capsys.readouterr()
    for given, said in (
        (["medusa"], "there is nothing to train on; give --data DIR"),
        (["medusa", *base], "already holds 'best'; resume it with --resume"),
        (["medusa", "--resume", tmp_path / "none"], "holds no training run"),
        (["eagle3", "--resume", run], "that run trains medusa; resume it with outrider train medusa"),
        (["medusa", "--resume", run, "--rows", 9], "the run was started with rows=4, not 9; leave the option out"),
        (["medusa", "--resume", run, "--run-dir", tmp_path], "leave out --run-dir"),
        (["medusa", *base, "--threads", 0], "threads=0 must be at least 1"),
        (["medusa", *base[:8], "--run-dir", tmp_path / "b"], "a row_length of 2048 is longer than what"),
        (["medusa", *base, "--device", "tpu"], "device=tpu must be cpu or cuda"),
    ):
        assert train(*given) == 2  # type: ignore[arg-type]
        assert said in sentence(capsys)


def test_help_names_the_settings_of_loop_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "eagle3", "--help"])
    said = capsys.readouterr().out
    assert "--learning-rate" in said
    assert "--draft-vocab" in said
