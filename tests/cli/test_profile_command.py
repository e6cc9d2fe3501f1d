"""`outrider profile` on a tiny model: its result, an interruption, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
from invoking import sentence

from outrider.cli import main
from outrider.costs.tables import COSTS_SCHEMA, CostFile
from outrider.profiling import profile as module

GRID = ("--batches", "1", "2", "--rows", "1", "2", "--contexts", "8", "--repeats", "1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "memory_bytes_per_s", lambda device: 1e10)
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


def run(tiny_model: Path, *more: str) -> int:
    return main(["profile", "--target", str(tiny_model), "--dtype", "float64", *GRID, *more])


def test_tables_then_one_json_line(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "costs.json"
    methods = ("ngram", "draft_model:layers=0,num_nodes=2")
    assert run(tiny_model, "--output", str(output), "--methods", *methods) == 0
    out = capsys.readouterr().out.splitlines()
    value = json.loads(out[-1])
    assert value["schema"] == COSTS_SCHEMA
    assert value["output"] == str(output)
    assert list(value["drafts"]) == ["ngram", "draft_model"]
    assert CostFile.read(output).to_plain() == {name: value[name] for name in value if name != "output"}
    assert any(line.startswith("forward at context 8") for line in out)
    assert any(line.startswith("draft_model: ms a step") for line in out)


def test_an_interruption_says_where_the_work_is(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bandwidth = module.memory_bytes_per_s

    def stopped(device: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "memory_bytes_per_s", stopped)
    assert run(tiny_model, "--output", str(tmp_path / "costs.json")) == 130
    assert str(tmp_path / "costs.json.unfinished") in sentence(capsys)
    monkeypatch.setattr(module, "memory_bytes_per_s", bandwidth)
    assert run(tiny_model, "--output", str(tmp_path / "costs.json")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]


BAD = [
    (("--rows", "0"), "rows=0 must be between 1 and 1024"),
    (("--batches", "5000"), "batches=5000 must be between 1 and 4096"),
    (("--contexts", "511"), "contexts=511 and rows=2 are 513 positions but the target has 512"),
    (("--methods", "ngran"), "did you mean 'ngram'?"),
    (("--methods", "ngram:num_node=3"), "did you mean 'num_nodes'?"),
    (("--dtype", "float8"), "unknown dtype 'float8'"),
    (("--target", "nowhere"), "nowhere"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_sentence(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert run(tiny_model, *arguments) == 2
    assert words in sentence(capsys)


def test_a_batch_that_does_not_fit(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outrider.costs.calibrate.free_bytes", lambda device: 100_000)
    assert run(tiny_model, "--batches", "1", "2000") == 2
    assert "batches=2000" in sentence(capsys)


def test_a_foreign_output_is_left_alone(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "thesis.txt"
    output.write_text("years of work")
    assert run(tiny_model, "--output", str(output)) == 2
    assert "is not a file of costs" in sentence(capsys)
    assert output.read_text() == "years of work"
