"""`--weights`: the same option of every command that loads a target, what it says, and what it keeps apart."""

import json
from pathlib import Path

import pytest
from invoking import sentence, status_of

from outrider.costs.tables import CostFile
from outrider.data.shards import Dataset
from outrider.results.rows import from_json
from outrider.testing.directory import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths are multiples of a block."""
    return write_tiny_model(
        tmp_path_factory.mktemp("wide") / "model", hidden_size=32, intermediate_size=2048, head_dim=8
    )


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("alpha beta", "gamma delta", "epsilon")))
    return path


COMMANDS = [
    ("generate", "abc"),
    ("bench", "--preset", "quick"),
    ("profile",),
    ("synthesize", "--output", "data"),
    ("train", "eagle3", "--data", "data"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_an_unknown_kind_is_one_sentence(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*command, "--weights", "int5") == 2
    said = sentence(capsys)
    assert "weights" in said
    assert "int5" in said


def test_a_preset_with_an_unknown_kind_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text('methods = ["none"]\nweights = "int5"\n')
    assert status_of("bench", "--preset", tmp_path / "mine.toml") == 2
    assert "weights" in sentence(capsys)


def test_a_kind_that_does_not_fit_is_one_sentence(
    model: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (("--target", model, "--weights", "int8", "--dtype", "float64"), "needs the native decoder on the CPU"),
        (("--target", tiny_model, "--weights", "int8"), "multiple of 32"),
        (("--weights", "int4"), "is a GGUF file; leave it out"),
    ):
        assert status_of("generate", "abc", "--max-new-tokens", 2, *words) == 2
        assert said in sentence(capsys)


def test_loading_says_what_runs_and_how_large_it_is(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {}
    for kind, kinds in (("stored", "bfloat16"), ("int8", "int8"), ("int4", "int4, int8")):
        assert status_of("generate", "abc", "--target", model, "--weights", kind, "--max-new-tokens", 2) == 0
        [said] = [line for line in caplog.messages if line.startswith(f"{model}: ")]
        asked = f"outrider quality --target {model} --weights {kind} measures what these weights cost in quality"
        assert (asked in caplog.messages) == (kind != "stored")
        caplog.clear()
        text, size = said.removeprefix(f"{model}: ").rsplit(", ", 1)
        assert text == kinds
        sizes[kind] = float(size.removesuffix(" MB"))
    assert 0 < sizes["int4"] < sizes["int8"] < sizes["stored"]


def test_quantising_says_what_it_cost_once_that_was_measured(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    quality = ("quality", "--target", model, "--weights", "int8", "--num-tokens", 80)
    assert status_of(*quality) == 0
    caplog.clear()
    assert status_of("generate", "abc", "--target", model, "--weights", "int8", "--max-new-tokens", 2) == 0
    assert any("the same most probable token as bfloat16 at " in line for line in caplog.messages)


def test_quantising_shows_its_progress_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        assert status_of("generate", "abc", "--target", model, "--weights", "int8", "--max-new-tokens", 2) == 0
        said.append("quantising" in capsys.readouterr().err)
    assert said == [True, False]


def test_a_benchmark_names_its_weights_and_is_not_resumed_with_others(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bench", "--preset", "quick", "--target", model, "--methods", "none", "--prompts", prompts)
    words += ("--max-new-tokens", "3", "--repeats", "1", "--run-dir", tmp_path / "run")
    assert status_of(*words, "--weights", "int8") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line)["weights"] == "int8"
    assert from_json(line).model == f"{model}, int8, bfloat16"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]["weights"] == "int8"
    assert status_of(*words, "--weights", "int4") == 2
    assert "weights=int8, not weights=int4" in sentence(capsys)


def test_a_profile_is_that_of_its_weights(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("--batches", "1", "--rows", "1", "2", "--contexts", "8", "--repeats", "1")
    words = ("profile", "--target", model, *grid, "--output", tmp_path / "costs.json")
    assert status_of(*words, "--weights", "int4") == 0
    assert CostFile.read(tmp_path / "costs.json").identity.weights == "int4, int8"
    capsys.readouterr()
    assert status_of(*words, "--weights", "int8") == 2
    assert "costs.json was measured with " in sentence(capsys)
    plain = json.loads((tmp_path / "costs.json").read_text())
    del plain["identity"]["weights"], plain["identity"]["isa"]
    (tmp_path / "costs.json").write_text(json.dumps(plain))
    assert status_of(*words, "--weights", "int4") == 2
    assert "costs.json was measured with weights unknown, not int4, int8" in sentence(capsys)


def test_a_data_set_and_a_training_run_belong_to_their_weights(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("synthesize", "--target", model, "--output", tmp_path / "data", "--source", prompts)
    words += ("--max-prompt-tokens", 120, "--max-turn-tokens", 40, "--max-new-tokens", 8, "--heldout-fraction", 0.4)
    assert status_of(*words, "--weights", "int8") == 0
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["target"]["weights"] == "int8"
    assert len(Dataset.open(tmp_path / "data")) == 3
    capsys.readouterr()
    assert status_of(*words, "--num-prompts", 3) == 2
    assert "weights=int8, not weights=bfloat16" in sentence(capsys)

    train = ("train", "medusa", "--target", model, "--data", tmp_path / "data", "--run-dir", tmp_path / "run")
    train += ("--weights", "int8", "--row-length", 64, "--rows", 2, "--real-tau-every", 0)
    assert status_of(*train) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["target"]["weights"] == record["options"]["weights"] == "int8"
    capsys.readouterr()
    assert status_of("train", "medusa", "--resume", tmp_path / "run", "--weights", "int4") == 2
    assert "the run was started with weights=int8, not int4" in sentence(capsys)
    assert status_of("train", "medusa", "--resume", tmp_path / "run") == 0
