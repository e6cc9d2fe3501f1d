"""`--kv-dtype`: the same option of every command that loads a target, what it says, and what it keeps apart."""

import json
from pathlib import Path

import pytest
from invoking import sentence, status_of

from outrider.audit.config import AuditConfig
from outrider.audit.settings import loaded_target
from outrider.costs.tables import CostFile
from outrider.records.progress import unheard
from outrider.results.rows import from_json
from outrider.testing.directory import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("kv") / "model", head_dim=8)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "a", "--kv-dtype", "int4"), "int4"),
        (("generate", "a", "--kv-dtype", "int8", "--backend", "hf"), "needs the native decoder, not backend='hf'"),
        (("bench", "--kv-dtype", "int8", "--engine", "vllm"), "kv_dtype=int8 is for our engine"),
        (("tune", "--kv-dtype", "int8", "--endpoint", "http://localhost:1/v1"), "kv_dtype=int8 is for our engine"),
    ],
    ids=["unknown", "transformers", "bench a server", "tune a server"],
)
def test_what_does_not_run_is_refused_in_one_sentence(
    words: tuple[str, ...], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = (model,) if words[0] == "tune" else ("--target", model)
    assert status_of(words[0], *words[1:], *target) == 2
    assert said in sentence(capsys)


def test_a_benchmark_names_its_keys_and_values(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "alpha beta"}) + "\n")
    words = ("bench", "--preset", "quick", "--target", model, "--methods", "none", "suffix")
    words += ("--prompts", tmp_path / "prompts.jsonl", "--max-new-tokens", "3", "--repeats", "1")
    words += ("--run-dir", tmp_path / "run")
    assert status_of(*words, "--kv-dtype", "int8") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line)["kv_dtype"] == "int8"
    ours = [row for row in json.loads(line)["rows"] if row["engine"] == "outrider"]
    assert {(row["method"], row["lossless"]["verdict"]) for row in ours} == {("none", "exact"), ("suffix", "exact")}
    assert from_json(line).model == f"{model}, bfloat16, keys and values int8"
    assert status_of(*words) == 2
    assert "kv_dtype=int8, not kv_dtype=auto" in sentence(capsys)


def test_a_profile_is_that_of_its_keys_and_values(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--batches", "1", "--rows", "1", "2", "--contexts", "8", "--repeats", "1")
    words = ("profile", "--target", model, *grid, "--output", tmp_path / "costs.json")
    assert status_of(*words, "--kv-dtype", "int8") == 0
    # keys and values, layers, heads, codes and a scale
    assert CostFile.read(tmp_path / "costs.json").identity.bytes_per_token == 2 * 2 * 2 * (8 + 4)
    capsys.readouterr()
    assert status_of(*words) == 2
    assert "costs.json was measured with " in sentence(capsys)


def test_an_audit_is_of_the_keys_and_values_that_were_asked_for(model: Path) -> None:
    target = loaded_target(AuditConfig(target=str(model), kv_dtype="int8"), unheard)
    assert target.spec.numbers == "bfloat16, bfloat16, keys and values int8"
