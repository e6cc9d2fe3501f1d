"""An audit that was interrupted goes on with the piece that was in flight; other settings or code begin again."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outrider.audit import AuditConfig, AuditReport, audit, faults, kept, methods
from outrider.audit.cells import Bench
from outrider.records.progress import Progress
from outrider.testing.directory import write_tiny_model


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditConfig:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    few = {"one token too many": faults.FAULTS["one token too many"]}
    monkeypatch.setattr(methods, "faults_of", lambda cell: few if cell.is_exact else {})
    write_tiny_model(tmp_path / "model")
    (tmp_path / "p.jsonl").write_text('{"prompt": "abc abc abc"}\n{"prompt": "one two one two"}\n', encoding="utf-8")
    return AuditConfig(
        target=str(tmp_path / "model"),
        dtype="float64",
        methods=("ngram",),
        prompts=(tmp_path / "p.jsonl",),
        processors=("none",),
        temperatures=(0.7,),
        batches=(2,),
        max_new_tokens=8,
        verification=("coupled", "rejection"),
        law_tokens=64,
    )


def stopped_at(config: AuditConfig, step: int) -> Path:
    """Interrupt an audit when it begins so-manieth work; the directory of its pieces."""
    places: list[Path] = []

    def stop(progress: Progress) -> None:
        if progress.done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(config, listen=stop, started=places.append)
    return places[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were decoded, in order."""
    found: list[str] = []
    answers: Callable[..., Any] = Bench.answers

    def noted(self: Bench, proposer: object, cell: Any, *given: Any) -> Any:
        found.append(cell.name)
        return answers(self, proposer, cell, *given)

    monkeypatch.setattr(Bench, "answers", noted)
    return found


def content(report: AuditReport) -> dict[str, Any]:
    return {name: value for name, value in vars(report).items() if name not in ("manifest", "seconds")}


def test_it_goes_on_where_it_was_and_ends_as_an_undisturbed_one(config: AuditConfig, decoded: list[str]) -> None:
    want = audit(config)
    whole = list(decoded)
    decoded.clear()
    directory = stopped_at(config, 4)
    before = list(decoded)
    decoded.clear()
    assert before
    assert content(audit(config)) == content(want)
    assert decoded
    assert before + decoded == whole  # nothing twice
    assert not directory.exists()


def test_pieces_outlive_a_report_that_cannot_be_delivered(config: AuditConfig, decoded: list[str]) -> None:
    def full(report: AuditReport) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        audit(config, ended=full)
    decoded.clear()
    audit(config)
    assert decoded == []


def test_other_settings_weights_or_code_begin_again(
    config: AuditConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stopped_at(config, 3)
    assert stopped_at(replace(config, output=tmp_path / "a.json", page=tmp_path / "a.html"), 3) == first
    others = {stopped_at(replace(config, seed=1), 3), stopped_at(replace(config, alpha=0.01), 3)}
    weights = tmp_path / "model" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    others.add(stopped_at(config, 3))
    monkeypatch.setattr(kept, "PACKAGE", tmp_path)
    (tmp_path / "code.py").write_text("mended = True\n", encoding="utf-8")
    others.add(stopped_at(config, 3))
    assert len(others | {first}) == 5


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"ngram, contract": 7, "ngram, coupled, batch 2, T=0.7": {}}'])
def test_damaged_pieces_are_made_again(config: AuditConfig, damage: str) -> None:
    directory = stopped_at(config, 3)
    (directory / kept.PIECES).write_text(damage, encoding="utf-8")
    found = {layer.name: len(layer.findings) for layer in audit(config).layers}
    assert found == {"rule": 2, "contract": 1, "text": 1, "law": 1, "controls": found["controls"]}


def test_two_at_once_are_refused(config: AuditConfig) -> None:
    def again(directory: Path) -> None:
        with pytest.raises(kept.RunError, match=r"another process is .* give another --seed"):
            methods.audit_methods(config)

    audit(config, started=again)
