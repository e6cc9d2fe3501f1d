"""Atomic writes and the lock of a run's directory.

A file or directory is complete under its name, also after a power cut, or it is not there: it is written under another
name, flushed to disk, then renamed. A full disk becomes an error of one sentence: what could not be written, why, and
that finished work is kept.

Example: `write_text(path, "{}")` leaves either the old content of `path` or "{}".
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from outrider.errors import RunError

__all__ = [
    "LOCK",
    "lock_directory",
    "replacing",
    "replacing_directory",
    "save_tensors",
    "sha256_of",
    "size",
    "sync",
    "write_tensors",
    "write_text",
    "writing",
]

LOCK: Final = ".lock"
KEPT: Final = "what was finished before is kept: free some space, then run the same command again or resume the run"


@contextmanager
def writing(path: Path, remedy: str = KEPT) -> Iterator[None]:
    """Turn a failed write into an error that names the place.

    Raises:
        RunError: if the disk is full or the place cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RunError(f"{path} cannot be written ({reason}); {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; flush that file and rename it to `path`.

    A failed write leaves the old file, and deletes the new one.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
    except Exception:
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory to fill; flush it and rename it to `path`, which may exist.

    At every moment the old or the new directory is complete on disk. A failed write leaves the old one.
    """
    part, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.iterdir():
            sync(file)
        sync(part)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        part.rename(path)
        sync(path.parent)
    except Exception:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if old.exists():
        shutil.rmtree(old, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically.

    Raises:
        RunError: if the disk is full or the place cannot be written.
    """
    with writing(path), replacing(path) as part:
        save_tensors(part, tensors)


def write_text(path: Path, text: str, remedy: str = KEPT) -> None:
    """Write a text file atomically.

    Raises:
        RunError: if the disk is full or the place cannot be written.
    """
    with writing(path, remedy), replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Save tensors as safetensors, sorted by name, so that equal content gives equal bytes."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(ordered, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes private files, and an engine may run as another user


def lock_directory(directory: Path, work: str, remedy: str) -> FileLock:
    """Create a run's directory and lock it; the caller releases the lock.

    Args:
        work: the work of another process, for its message, such as "training into".
        remedy: the alternative to waiting, such as "a new --run-dir".

    Raises:
        RunError: if another process holds the lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"another process is {work} {directory}; wait for it or give {remedy}") from None
    return lock


def sha256_of(*files: Path) -> str:
    """Return the SHA-256 (hex) of the files' content, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size(num_bytes: float) -> str:
    """Return a number of bytes in megabytes or gigabytes.

    >>> size(2_180_000_000)
    '2.18 GB'
    """
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
