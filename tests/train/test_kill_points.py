"""A run that dies before any one of its file operations ends, once resumed, as if nothing had happened."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dying import Killed, dying_at
from safetensors import SafetensorError
from toys import play, setup, small

from outrider.cli import main
from outrider.data.config import SynthesisConfig
from outrider.data.synthesis import synthesize
from outrider.export.exported import Export, export_checkpoint, export_into
from outrider.testing.directory import write_tiny_model
from outrider.train.objectives.medusa import MedusaObjective, MedusaObjectiveConfig
from outrider.train.run import Setup
from writing import files_of, tiny_identity, word_generator

UNLIKE = {"provenance", "seconds", "tokens_per_s", "run", "checkpoint"}
"""What two runs of the same settings may differ in."""


def made() -> Setup:
    """Heads whose checkpoint also holds what the last evaluation measured."""
    config = small(epochs=1, eval_every=5, checkpoint_every=4, real_tau_every=99, real_tau_prompts=1, real_tau_tokens=4)
    return setup(config, method="medusa", objective=MedusaObjective, settings=MedusaObjectiveConfig(num_heads=2))


def content(run: Path) -> dict[str, Any]:
    """All that a run is for: weights, configs, figures."""
    found: dict[str, Any] = {}
    for name in ("best", "final"):
        for path in sorted((run / name).iterdir()):
            if path.name not in ("README.md", "training.json"):
                found[f"{name}/{path.name}"] = path.read_bytes()
            else:
                found[f"{name}/{path.name}"] = "is there"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found["log"] = [{key: value for key, value in line.items() if key not in UNLIKE} for line in lines]
    summary = json.loads((run / "summary.json").read_text())
    found["summary"] = {key: value for key, value in summary.items() if key not in UNLIKE}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that nothing disturbed, and how many file operations it takes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with dying_at(0, run) as watch:
        play(made(), run)
    return run, watch.count


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that the dead left open
def test_a_run_that_dies_before_any_file_operation_ends_the_same(whole: tuple[Path, int], tmp_path: Path) -> None:
    run, count = whole
    wanted = content(run)
    assert "held_out" in wanted["summary"]
    assert wanted["summary"]["held_out"] is not None
    assert b"rank_accuracies" in wanted["final/config.json"]
    assert count > 40
    late = count - 20  # from the last checkpoint on, every operation; before, every eighth
    for number in [*range(1 + count % 8, late, 8), *range(late, count + 1)]:
        cut = tmp_path / f"cut{number}"
        with pytest.raises(Killed), dying_at(number, cut):
            play(made(), cut)
        is_begun = (cut / "config.json").is_file()
        play(made(), cut, resume=is_begun)
        assert content(cut) == wanted, f"operation {number} of {count}"
        shutil.rmtree(cut)


def test_a_finished_run_that_is_resumed_stays_as_it_is(whole: tuple[Path, int], tmp_path: Path) -> None:
    cut = tmp_path / "run"
    shutil.copytree(whole[0], cut)
    before = {path: path.read_bytes() for path in sorted(cut.rglob("*")) if path.is_file()}
    said: list[str] = []
    report = play(made(), cut, resume=True, say=said.append)
    assert report == json.loads((whole[0] / "summary.json").read_text())
    assert {path: path.read_bytes() for path in sorted(cut.rglob("*")) if path.is_file()} == before
    assert said == [f"{cut} is finished after step {report['steps']}: its weights and figures stay as they are"]


@pytest.mark.parametrize("lost", ["summary.json", "final", "final/README.md", "best/training.json"])
def test_only_what_is_missing_of_a_finished_run_is_made_again(
    lost: str, whole: tuple[Path, int], tmp_path: Path
) -> None:
    cut = tmp_path / "run"
    shutil.copytree(whole[0], cut)
    shutil.rmtree(cut / lost) if (cut / lost).is_dir() else (cut / lost).unlink()
    play(made(), cut, resume=True)
    assert content(cut) == content(whole[0])


def test_texts_are_the_same_whatever_file_operation_was_the_last(tmp_path: Path) -> None:
    identity = tiny_identity(tmp_path / "model")
    config = SynthesisConfig(
        num_prompts=6, shard_size=3, max_new_tokens=100, max_prompt_tokens=400, max_turn_tokens=100
    )

    def write(place: Path) -> dict[str, Any]:
        synthesize(config, place, identity, word_generator(identity))
        manifest = json.loads((place / "manifest.json").read_text())
        return {**files_of(place), "totals": manifest["totals"]}

    with dying_at(0, tmp_path / "whole") as watch:
        wanted = write(tmp_path / "whole")
    assert wanted["totals"]["num_shards"] == 2
    for number in range(1, watch.count + 1):
        cut = tmp_path / f"cut{number}"
        with pytest.raises(Killed), dying_at(number, cut):
            write(cut)
        assert write(cut) == wanted, f"operation {number} of {watch.count}"


def test_an_export_is_whole_or_not_there_and_replaces_what_a_killed_one_left(
    whole: tuple[Path, int], tmp_path: Path
) -> None:
    def export(place: Path) -> dict[str, bytes]:
        plan = Export(
            checkpoint=whole[0] / "final",
            target=made().target,
            output=place,
            engine="vllm",
            num_nodes=2,
            served_from=tmp_path / "out",
        )
        export_into(place, lambda part: export_checkpoint(replace(plan, output=part)))
        return {path.name: path.read_bytes() for path in sorted(place.iterdir())}

    with dying_at(0, tmp_path / ".out") as watch:
        wanted = export(tmp_path / "out")
    assert b".out.part" not in wanted["serving.json"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    shutil.rmtree(tmp_path / "out")
    for number in range(1, watch.count + 1):
        with pytest.raises(Killed), dying_at(number, tmp_path / ".out"):
            export(tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (tmp_path / ".out.part").mkdir(exist_ok=True)
        (tmp_path / ".out.part" / "config.json").write_text("half")  # as SIGKILL leaves it
        assert export(tmp_path / "out") == wanted, f"operation {number} of {watch.count}"
        shutil.rmtree(tmp_path / "out")


def test_a_full_disk_ends_an_export_with_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_model(tmp_path / "model")
    directory = str(model)

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("outrider.records.files.save_file", full)
    given = ["export", directory, "--target", directory, "--dtype", "float32", "--output", str(tmp_path / "out")]
    assert main(given) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("outrider: ")]
    assert f"{tmp_path / 'out'} cannot be written (I/O error: No space left on device (os error 28))" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    monkeypatch.undo()
    assert main(given) == 0
    assert (tmp_path / "out" / "serving.json").is_file()
