"""Compiled kernels, kept on disk: one directory for each content of the sources they come from.

Numba's own cache compares the date of one file, so a change in a file that a kernel calls leaves old machine code in
use; and two processes that save at once can leave an index that names the other one's code. Here the directory's name
is a hash of every source file that a kernel may call, and of the compiler's version. What is in it never becomes
stale, checkouts share it, and a lock lets one process save at a time. Directories that were not used for 30 days are
removed. Without a directory that can be written, kernels are compiled again by each process.

Example: the kernels of `proposers/lookup` are in `~/.cache/outrider/kernels/lookup-3f2a91c05b7d/`; with
NUMBA_CACHE_DIR set, in that directory instead of `~/.cache/outrider/kernels`.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, final

import numba
from filelock import FileLock
from llvmlite import __version__ as llvmlite_version
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache

from outrider.env import PACKAGE, cache_home

__all__ = ["cached"]

SHARED: Final = PACKAGE / "kernels"
"""Kernels of every folder may call these."""
KEPT_S: Final = 30 * 24 * 3600


def cached(kernel: Any, function: Callable[..., Any], variant: str = "") -> Any:
    """Give a Numba dispatcher or callback the cache of its source's content, and return it.

    Args:
        variant: any further condition of the machine code, such as the instruction set.
    """
    directory = _directory(Path(function.__code__.co_filename).parent)
    kernel._cache = NullCache() if directory is None else _KernelCache(function, directory, variant)
    return kernel


@final
class _KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, in a directory of ours."""

    def __init__(self, function: Callable[..., Any], directory: Path, variant: str) -> None:
        self._directory = directory
        self._impl_class = lambda python_function: _Implementation(python_function, directory, variant)
        super().__init__(function)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save machine code while no other process does."""
        with FileLock(self._directory / "lock"):
            super().save_overload(sig, data)


@final
class _Implementation(CompileResultCacheImpl):  # type: ignore[misc]
    """Names of one function's files; Numba asks it where they are."""

    def __init__(self, function: Callable[..., Any], directory: Path, variant: str) -> None:
        self._locator = _Place(function, directory, variant)
        self._lineno = function.__code__.co_firstlineno
        name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}"
        self._filename_base = self.get_filename_base(name, "")


@final
class _Place:
    """The interface of a Numba locator."""

    def __init__(self, function: Callable[..., Any], directory: Path, variant: str) -> None:
        self._py_file, self._line = function.__code__.co_filename, function.__code__.co_firstlineno
        self._directory, self._variant = directory, variant

    def get_cache_path(self) -> str:
        """Return the directory."""
        return str(self._directory)

    def get_source_stamp(self) -> str:
        """Return the directory's name, which is a hash of the sources."""
        return self._directory.name

    def get_disambiguator(self) -> str:
        """Return what tells functions of one name apart."""
        return f"{self._line}{self._variant}"

    def ensure_cache_path(self) -> None:
        """Do nothing: `_directory` made it."""


@cache
def _directory(folder: Path) -> Path | None:
    """Return the directory for kernels of this source folder, or None where nothing can be written."""
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or cache_home() / "kernels")
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite_version}".encode())
    for source in sorted({*SHARED.rglob("*.py"), *folder.glob("*.py")}):
        digest.update(source.name.encode() + source.read_bytes())
    directory = base / f"{folder.name}-{digest.hexdigest()[:12]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        _remove_unused(base)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None


def _remove_unused(base: Path) -> None:
    for other in base.glob("*-????????????"):
        if other.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
