"""A manifest says where a number comes from, and does not guess."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import outrider
from outrider.costs.bandwidth import memory_bytes_per_s
from outrider.records import provenance
from outrider.records.provenance import (
    GitState,
    collect_manifest,
    git_state,
    hardware,
    manifest_from_json,
    manifest_to_json,
    template_hash,
)


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_and_a_changed_checkout(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout / "package") == GitState(commit=commit, dirty=False)
    (checkout / "package" / "a.py").write_text("2\n")
    assert git_state(checkout / "package") == GitState(commit=commit, dirty=True)


def test_a_package_installed_inside_another_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / ".venv" / "outrider"
    installed.mkdir(parents=True)
    (installed / "a.py").write_text("1\n")
    assert git_state(installed) == GitState(commit=None, dirty=None)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) == GitState(commit=None, dirty=None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(outrider.__file__).parent) == GitState(commit=None, dirty=None)


def test_a_manifest_survives_the_round_trip() -> None:
    settings = {"batch": [1, 4], "methods": ["none"], "sampling": {"temperature": 0.0}, "limit": None}
    num_threads = torch.get_num_threads()
    manifest = collect_manifest(seed=3, settings=settings, workload_hash="ab", template_hash="cd")
    line = manifest_to_json(manifest)
    assert "\n" not in line
    assert manifest_from_json(line) == manifest
    assert manifest.settings == settings
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.threads["torch"] == num_threads == torch.get_num_threads(), "looking must not change anything"
    assert manifest.started.endswith("+00:00")


def test_hardware_is_what_this_process_may_use() -> None:
    found = hardware()
    assert found.cpu
    assert 1 <= found.num_usable_cores <= (psutil.cpu_count() or 1)
    assert found.memory_bytes == psutil.virtual_memory().total
    assert len(found.gpus) == len(found.gpu_memory_bytes) == torch.cuda.device_count()


def test_the_template_hash_sees_the_template() -> None:
    one, other = SimpleNamespace(chat_template="{{ a }}"), SimpleNamespace(chat_template="{{ b }}")
    assert template_hash(one) != template_hash(other)
    assert template_hash(None) is None
    assert template_hash(SimpleNamespace(chat_template=None)) is None


def test_memory_is_read_at_a_believable_speed() -> None:
    assert 1e8 < memory_bytes_per_s(num_bytes=2**24, passes=3) < 1e13


def test_a_machine_that_says_little_is_described_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "CPU_DESCRIPTION", Path("/does/not/exist"))
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "a-package-that-nobody-installed"))
    assert hardware().flags == ()
    assert hardware().cpu
    versions = collect_manifest(seed=0, settings={}, workload_hash="").versions
    assert set(versions) == {"python", "outrider", "torch"}
