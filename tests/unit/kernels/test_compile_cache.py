"""Compiled kernels on disk: what makes them stale, processes that save at once, and a place that cannot be written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest

from outrider.kernels import compile_cache

PROGRAM = """
import sys
import numba
from outrider.kernels.compile_cache import cached

def adding(number):
    def add(x):
        return x + number
    return cached(numba.njit(add), add)

kernels = {number: adding(number) for number in range(int(sys.argv[1]), int(sys.argv[2]))}
wrong = [number for number, add in kernels.items() if add(1) != number + 1]
print(wrong, sum(sum(add.stats.cache_hits.values()) for add in kernels.values()))
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of kernels and a shared one, and a cache of its own."""
    for name in ("shared", "lookup"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(compile_cache, "SHARED", tmp_path / "shared")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def directory(folder: Path) -> Path | None:
    return compile_cache._directory.__wrapped__(folder)


@pytest.mark.parametrize("edited", ["shared", "lookup"])
def test_an_edit_of_any_source_that_may_be_called_moves_the_directory(sources: Path, edited: str) -> None:
    before = directory(sources / "lookup")
    assert before is not None
    assert before == directory(sources / "lookup")
    (sources / edited / "kernel.py").write_text("x = 2\n", encoding="utf-8")
    assert directory(sources / "lookup") not in (before, None)


def test_directories_of_old_sources_are_removed_after_a_month(sources: Path) -> None:
    old, young = (sources / "cache" / name for name in ("lookup-0123456789ab", "lookup-ba9876543210"))
    for path, days in ((old, 31), (young, 29)):
        path.mkdir(parents=True)
        os.utime(path, (time.time() - days * 86400,) * 2)
    assert directory(sources / "lookup") is not None
    assert not old.exists()
    assert young.exists()


def test_kernels_compile_where_nothing_can_be_written(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(sources / "file" / "cache"))
    monkeypatch.setattr(compile_cache, "_directory", compile_cache._directory.__wrapped__)

    def double(x: int) -> int:
        return 2 * x

    assert compile_cache.cached(numba.njit(double), double)(21) == 42


def test_processes_that_save_at_once_lose_nothing(tmp_path: Path) -> None:
    program = tmp_path / "kernels.py"
    program.write_text(PROGRAM, encoding="utf-8")

    def start(first: int, last: int) -> "subprocess.Popen[str]":
        command = [sys.executable, str(program), str(first), str(last)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NUMBA_CACHE_DIR": cache})

    cache = str(tmp_path / "cache")
    writers = [start(0, 12), start(12, 24)]
    assert [writer.communicate()[0].strip() for writer in writers] == ["[] 0", "[] 0"]
    assert start(0, 24).communicate()[0].strip() == "[] 24"
