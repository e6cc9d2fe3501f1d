"""A run's directory belongs to one run and one process."""

from dataclasses import replace
from pathlib import Path

import pytest

from outrider.errors import RunError
from outrider.records.provenance import Manifest, collect_manifest
from outrider.results.store import RunStore, choose_directory


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return collect_manifest(seed=0, settings={"repeats": 2, "batches": (1, 4)}, workload_hash="0" * 64)


def test_the_same_run_is_resumed(manifest: Manifest, tmp_path: Path) -> None:
    RunStore(tmp_path / "run", manifest).close()
    with RunStore(tmp_path / "run", replace(manifest, started="later")) as store:
        assert store.manifest.started == manifest.started


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"repeats": 3, "batches": (1, 4)}}, "repeats=2, not repeats=3"),
        ({"workload_hash": "1" * 64}, "prompts with hash 000000000000, not 111111111111"),
        ({"template_hash": "ab"}, "the chat template"),
        ({"commit": "another"}, "not another"),
    ],
)
def test_another_run_is_refused(changes: dict[str, object], said: str, manifest: Manifest, tmp_path: Path) -> None:
    RunStore(tmp_path / "run", manifest).close()
    with pytest.raises(RunError, match=said):
        RunStore(tmp_path / "run", replace(manifest, **changes))  # type: ignore[arg-type]


def test_a_directory_with_other_files_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        RunStore(tmp_path, manifest)


def test_one_process_at_a_time(manifest: Manifest, tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", manifest), pytest.raises(RunError, match="another process"):
        RunStore(tmp_path / "run", manifest)
    RunStore(tmp_path / "run", manifest).close()


def test_a_place_that_cannot_be_written_is_named(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(RunError, match="cannot be written"):
        RunStore(tmp_path / "file" / "run", manifest)


def test_a_damaged_line_in_the_middle_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    RunStore(tmp_path, manifest).close()
    (tmp_path / "units.jsonl").write_text('{"unit": \n{"unit": \n')
    with pytest.raises(RunError, match="a unit cannot be read"):
        RunStore(tmp_path, manifest)


def test_the_newest_unfinished_run_is_chosen(manifest: Manifest, tmp_path: Path) -> None:
    for name, own in (("1-a", manifest), ("2-b", manifest), ("3-c", replace(manifest, commit="another"))):
        RunStore(tmp_path / name, own).close()
    assert choose_directory(tmp_path, "quick", manifest, resume=True) == tmp_path / "2-b"
    with RunStore(tmp_path / "2-b", manifest) as store:
        store.finish("{}", "")
    assert choose_directory(tmp_path, "quick", manifest, resume=True) == tmp_path / "1-a"
    fresh = choose_directory(tmp_path, "quick", manifest, resume=False)
    assert not fresh.exists()
    assert fresh.name.endswith("-quick")
