"""Checks of the machine: limits of a control group, versions, the cache, and a bad setting."""

import sys
from pathlib import Path

import pytest

from outrider.cli import main
from outrider.doctor import installed, machine
from outrider.doctor.finding import Finding, is_sound, ordered


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": ""}, None),
        ({}, None),
    ],
)
def test_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cores_of_quota(tmp_path) == cores


def test_versions_out_of_range_and_missing_are_named() -> None:
    wrong = installed.wrong_versions(
        ["torch>=1.0", "torch<1.0", "no-such-package-at-all>=2", "pytest<1; extra == 'dev'", "numpy!!!"]
    )
    assert list(wrong.values()) == ["torch<1.0", "no-such-package-at-all>=2"]
    assert "no-such-package-at-all is missing" in wrong


def levels(findings: list[Finding]) -> dict[str, str]:
    return {one.check: one.level for one in findings}


def test_more_threads_than_cores_are_a_problem_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_usable_cores", lambda: 2)
    monkeypatch.setattr(machine, "cores_of_quota", lambda: None)
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "8")
    [found] = machine._threads()
    assert (found.level, "OUTRIDER_NUM_THREADS=2" in found.remedy) == ("problem", True)
    monkeypatch.setattr(machine, "cores_of_quota", lambda: 1.5)
    [found] = machine._threads()
    assert "OUTRIDER_NUM_THREADS=1" in found.remedy
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "1")
    [found] = machine._threads()
    assert found.level == "ok"


def test_a_cache_that_is_full_or_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "new" / "cache"))
    [found] = installed._cache()
    assert str(tmp_path) in found.evidence
    assert not (tmp_path / "new").exists(), "a check creates nothing"

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(installed.tempfile, "TemporaryFile", full)
    [found] = installed._cache()
    assert (found.level, "No space left" in found.evidence) == ("problem", True)


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_a_cache_that_is_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "cache"
    place.write_text("") if kind == "file" else place.symlink_to(tmp_path / "gone")
    monkeypatch.setenv("OUTRIDER_CACHE", str(place))
    [found] = installed._cache()
    assert (found.level, str(place) in found.evidence) == ("problem", True)
    assert "OUTRIDER_CACHE" in found.remedy


def test_a_missing_dependency_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "outrider.doctor.machine", None)  # as if something that it imports were missing
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err.strip()
    assert "pip install" in said
    assert len(said.splitlines()) == 1


def test_everything_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOAD_S", 0.01)
    findings = machine.check_machine(measure_bandwidth=False)
    names = [one.check for one in findings]
    assert len(names) == len(set(names))
    assert {"instructions", "threads", "memory", "other load", "GPU", "versions", "cache", "kernels"} <= {*names}
    assert all(one.remedy for one in findings if one.level != "ok")


def test_problems_come_first_and_decide() -> None:
    found = [Finding("a", "ok", ""), Finding("b", "warn", ""), Finding("c", "problem", ""), Finding("d", "problem", "")]
    assert [one.check for one in ordered(found)] == ["c", "d", "b", "a"]
    assert not is_sound(found)
    assert is_sound(found[:2])
