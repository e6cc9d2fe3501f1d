"""What is no finished run is one sentence with a remedy, and exit status 2."""

import json
from pathlib import Path

import pytest
from hostile import hostile_manifest, write_run

from outrider.cli import main
from outrider.report.sources import read_source
from outrider.results.rows import Report, to_json

ROOT = Path(__file__).parents[3]


def test_a_filed_result_has_the_manifest_of_its_name() -> None:
    source = read_source(ROOT / "docs" / "results" / "quick.json")
    assert source.bench is not None
    assert source.manifest is not None
    assert source.manifest.commit == source.bench.commit
    assert source.name == "quick.json"


def test_a_directory_has_its_own_manifest(report: Report, tmp_path: Path) -> None:
    manifest = hostile_manifest()
    assert read_source(write_run(tmp_path / "a", report, manifest)).manifest == manifest
    assert read_source(write_run(tmp_path / "b", report)).manifest is None


def test_records_of_quality_are_read() -> None:
    source = read_source(ROOT / "docs" / "results" / "quality.jsonl")
    assert source.quality is not None
    assert source.bench is None


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "report.json does not exist"),
        ({"manifest.json": "{}"}, "holds a run that is not finished"),
        ({"report.json": "{"}, "cannot be read: not JSON"),
        ({"report.json": "[]"}, "is no result of Outrider: it names no schema"),
        ({"report.json": '{"schema": 1}'}, "it names no schema"),
        ({"report.json": '{"schema": "outrider.train/1"}'}, "its schema is 'outrider.train/1'"),
        ({"report.json": '{"schema": "outrider.bench/1"}'}, "lacks the field"),
        ({"report.json": '{"schema": "outrider.bench/12"}'}, "its schema is 'outrider.bench/12'"),
        ({"report.json": '{"schema": "outrider.tune/1", "run": 3}'}, "cannot be read"),
        ({"report.json": b"\xff\xfe\x00"}, "cannot be read"),
        ({"report.json": "[" * 100_000}, "cannot be read"),
    ],
)
def test_damage_is_one_sentence(
    files: dict[str, str | bytes], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert says in told[0]
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_manifest_and_figures_that_cannot_be_are_named(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", report)
    (run / "manifest.json").write_text("{}", encoding="utf-8")
    assert main(["report", str(run)]) == 2
    assert "manifest.json cannot be read" in capsys.readouterr().err
    plain = json.loads(to_json(report))
    plain["rows"][0]["tau"] = -1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(plain), encoding="utf-8")
    assert main(["report", str(other)]) == 2
    assert "rows[0] has a tau that cannot be" in capsys.readouterr().err


def test_without_a_run_the_command_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
