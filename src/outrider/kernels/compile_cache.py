"""Compiled kernels, kept on disk: one directory for each content of the sources they come from, one file per kernel.

Numba's own cache compares the date of one file, so a change in a file that a kernel calls leaves old machine code in
use; two processes that save at once can leave an index that names the other one's code; and a damaged file ends every
later process. Here the directory's name is a hash of every source file that a kernel may call, and of the compiler's
version. What is in it never becomes stale, and checkouts share it. A file holds its own digest, so that what is
damaged is compiled again. Directories that were not used for 30 days are removed. Where nothing can be written, each
process compiles its kernels.

Example: the kernels of `proposers/lookup` are in `~/.cache/outrider/kernels/lookup-3f2a91c05b7d/`; with
NUMBA_CACHE_DIR set, in `$NUMBA_CACHE_DIR/outrider` instead of `~/.cache/outrider/kernels`.
"""

import hashlib
import logging
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, final

import numba
from llvmlite import __version__ as llvmlite_version
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from outrider.env import PACKAGE, kernels_home
from outrider.errors import ConfigError

__all__ = ["SUFFIX", "cached"]

SHARED: Final = PACKAGE / "kernels"
"""Kernels of every folder may call these."""
KEPT_S: Final = 30 * 24 * 3600
SUFFIX: Final = ".kernel"
TAG: Final = "CACHEDIR.TAG"
"""Marks a directory as one of these; backup programs skip directories that hold it."""
SIGNATURE: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# Kernels of Outrider; may be deleted at any time.\n"
DIGEST_BYTES: Final = 32

log = logging.getLogger(__name__)


def cached(kernel: Any, function: Callable[..., Any], variant: str = "") -> Any:
    """Give a Numba dispatcher or callback the cache of its source's content, and return it.

    Args:
        variant: any further condition of the machine code, such as the instruction set.
    """
    directory = _directory(Path(function.__code__.co_filename).parent)
    kernel._cache = NullCache() if directory is None else _KernelCache(function, directory, variant)
    return kernel


@final
class _KernelCache(NullCache):  # type: ignore[misc]
    """The compiled forms of one function, by the types of its arguments: what Numba asks of a cache."""

    def __init__(self, function: Callable[..., Any], directory: Path, variant: str) -> None:
        code = function.__code__
        self._directory = directory
        self._name = f"{Path(code.co_filename).stem}.{code.co_name}-{code.co_firstlineno}{variant}"
        closed_over = tuple(cell.cell_contents for cell in function.__closure__ or ())
        self._content = hashlib.sha256(code.co_code + dumps(closed_over)).hexdigest()

    @property
    def cache_path(self) -> str:
        """The directory of the files."""
        return str(self._directory)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled form of these types, or None where no whole file of it is there."""
        target_context.refresh()
        payload = _read(self._file(sig, target_context.codegen()))
        return None if payload is None else CompileResult._rebuild(target_context, *payload)

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Save a compiled form, whole or not at all; a disk that is full loses nothing but time."""
        if any(not one.can_cache for one in cres.lifted) or cres.library.has_dynamic_globals:
            return  # its machine code holds addresses of this process
        try:
            _write(self._file(sig, cres.library.codegen), cres._reduce())
        except OSError as error:
            log.warning("%s cannot be written (%s): kernels are compiled again next time", self._directory, error)

    def _file(self, sig: Any, codegen: Any) -> Path:
        key = f"{sig} {codegen.magic_tuple()} {self._content}"
        return self._directory / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}{SUFFIX}"


def _read(file: Path) -> Any:
    """Return what was saved, or None if there is no such file, or a damaged one."""
    try:
        held = file.read_bytes()
    except OSError:
        return None
    digest, content = held[:DIGEST_BYTES], held[DIGEST_BYTES:]
    return pickle.loads(content) if hashlib.sha256(content).digest() == digest else None


def _write(file: Path, payload: Any) -> None:
    content = dumps(payload)
    handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(hashlib.sha256(content).digest() + content)
        Path(scratch).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(scratch).unlink()
        raise


@cache
def _directory(folder: Path) -> Path | None:
    """Return the directory for kernels of this source folder, or None where nothing can be written."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite_version}".encode())
    for source in sorted({*SHARED.rglob("*.py"), *folder.glob("*.py")}):
        digest.update(source.name.encode() + source.read_bytes())
    try:
        base = kernels_home()
        directory = base / f"{folder.name}-{digest.hexdigest()[:12]}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / TAG).write_text(SIGNATURE, encoding="utf-8")
        os.utime(directory)
        _remove_unused(base)
    except (ConfigError, OSError):
        return None
    return directory


def _remove_unused(base: Path) -> None:
    """Remove directories that this module made and nobody used for a month."""
    for tag in base.glob(f"*-????????????/{TAG}"):
        with suppress(OSError):  # another process removes it, too
            if tag.parent.stat().st_mtime < time.time() - KEPT_S:
                shutil.rmtree(tag.parent, ignore_errors=True)
