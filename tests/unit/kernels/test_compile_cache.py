"""Compiled kernels on disk: what makes them stale, processes that save at once, and a place that cannot be written."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import pytest
from numba import types

from outrider.kernels import compile_cache
from outrider.kernels.compiled import callback

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
    old, young, foreign = (
        sources / "cache" / "outrider" / name
        for name in ("lookup-0123456789ab", "lookup-ba9876543210", "photos-202401010000")
    )
    beside = sources / "cache" / "lookup-0123456789ab"
    for path, days in ((old, 31), (young, 29), (foreign, 31), (beside, 31)):
        path.mkdir(parents=True)
        if path is not foreign:
            (path / compile_cache.TAG).touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    assert directory(sources / "lookup") is not None
    assert not old.exists()
    assert young.exists()
    assert foreign.exists(), "no directory of kernels"
    assert beside.exists(), "NUMBA_CACHE_DIR itself belongs to others"


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


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda held: b"",
    "cut": lambda held: held[: len(held) // 2],
    "another number": lambda held: held[:-9] + bytes([held[-9] ^ 1]) + held[-8:],
    "another file": lambda held: b"not a kernel at all" * 9,
}


def run_program(tmp_path: Path, *before: str) -> str:
    program = tmp_path / "kernels.py"
    program.write_text("\n".join([*before, PROGRAM]), encoding="utf-8")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(program), "0", str(len(DAMAGES))]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip()


def test_a_damaged_file_is_compiled_again(tmp_path: Path) -> None:
    assert run_program(tmp_path) == "[] 0"
    files = sorted(tmp_path.glob(f"cache/outrider/*/*{compile_cache.SUFFIX}"))
    for file, damage in zip(files, DAMAGES.values(), strict=True):
        file.write_bytes(damage(file.read_bytes()))
    assert run_program(tmp_path) == "[] 0"
    assert run_program(tmp_path) == f"[] {len(DAMAGES)}"


def test_kernels_compile_where_the_disk_is_full(tmp_path: Path) -> None:
    """A file may have 2,000 bytes, which suffices for a directory's tag and for no kernel."""
    assert run_program(tmp_path, "import resource", "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))") == "[] 0"
    assert [file.name for file in tmp_path.glob("cache/outrider/*/*")] == [compile_cache.TAG], "no part is left"


def test_callbacks_compile_for_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "OUTRIDER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setattr(compile_cache, "_directory", compile_cache._directory.__wrapped__)

    def twice(number: int) -> int:
        return 2 * number

    compiled = callback(types.int64, types.int64)(twice)
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(compiled.address)(21) == 42
