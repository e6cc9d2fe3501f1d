"""`outrider quality` on tiny models: its result, an interruption, and bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from invoking import sentence

from outrider.cli import main
from outrider.quality import measure as module
from outrider.quality.report import SCHEMA, Report, read_report
from outrider.quality.unfinished import Unfinished
from outrider.testing.directory import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    return write_tiny_model(tmp_path_factory.mktemp("quality") / "model", dtype=torch.bfloat16, **sizes)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


def run(model: Path, *more: str) -> int:
    return main(["quality", "--target", str(model), "--num-tokens", "80", *more])


def run_whole(model: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    assert run(model, "--weights", "int8", "int4") == 0
    return read_report(capsys.readouterr().out.splitlines()[-1])


def test_a_table_then_one_json_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--weights", "stored", "int8", "--candidates", str(model)) == 0
    out = capsys.readouterr().out.splitlines()
    report = read_report(out[-1])
    assert json.loads(out[-1])["schema"] == SCHEMA
    assert [line.label for line in report.lines] == ["stored", "int8", "model"]
    table = [line.split() for line in out if line.startswith(("reference", "stored", "int8", "model "))]
    assert [words[0] for words in table] == ["reference", "stored", "int8", "model"]
    assert report.manifest.settings["weights"] == ["stored", "int8"]


def test_an_interruption_says_what_is_kept(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = module.load_target

    def stopped(name: str, *, weights: str, **settings: str) -> object:
        if weights == "int4":
            raise KeyboardInterrupt
        return load(name, weights=weights, **settings)  # type: ignore[arg-type]

    whole = run_whole(model, capsys)
    monkeypatch.setattr(module, "load_target", stopped)
    assert run(model, "--weights", "int8", "int4") == 130
    assert sentence(capsys) == "outrider: interrupted; the figures of int8 are kept, and the same command goes on"
    measured: list[str] = []

    def again(name: str, *, weights: str, **settings: str) -> object:
        measured.append(weights)
        return load(name, weights=weights, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_target", again)
    assert run_whole(model, capsys).lines == whole.lines
    assert measured == ["bf16", "int4"], "int8 is done"
    measured.clear()
    assert run_whole(model, capsys).lines == whole.lines
    assert measured == ["bf16", "int8", "int4"], "a finished measurement begins anew"


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text.replace('"start": 1', '"start": 2', 1)])
def test_a_damaged_file_of_an_interrupted_measurement_is_not_used(
    damage: Callable[[str], str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run_whole(model, capsys)
    monkeypatch.setattr(Unfinished, "end", lambda self: None)
    run_whole(model, capsys)
    [kept] = tmp_path.rglob("*.unfinished")
    kept.write_text(damage(kept.read_text()))
    monkeypatch.undo()
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    assert run_whole(model, capsys).lines == whole.lines
    assert not kept.exists()


BAD = [
    (("--weights",), "nothing to measure"),
    (("--num-tokens", "0"), "num_tokens=0 must be at least 1"),
    (("--dtype", "float8"), "unknown dtype 'float8'"),
    (("--target", "nowhere"), "nowhere"),
    (("--candidates", "nowhere.gguf"), "nowhere.gguf does not exist"),
    (("--prompts", "nowhere.jsonl"), "nowhere.jsonl"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_sentence(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert run(model, *arguments) == 2
    assert words in sentence(capsys)


def test_a_candidate_of_another_vocabulary(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_tiny_model(tmp_path / "other")
    path = other / "tokenizer.json"
    value = json.loads(path.read_text())
    vocab = value["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(value))
    assert run(model, "--candidates", str(other)) == 2
    assert f"token 64 of {model} is 'a', and not of {other}" in sentence(capsys)


def test_a_damaged_candidate(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_tiny_model(tmp_path / "other")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run(model, "--candidates", str(other)) == 2
    assert "model.safetensors" in sentence(capsys)
