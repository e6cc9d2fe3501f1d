"""Files that are there whole or not at all, also after a power cut: written under another name, synced, renamed.

A full disk is an error of one sentence: what could not be written, why, and that what was finished is kept.

Example: `write_text(path, "{}")` leaves either the old content of `path` or "{}".
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from outrider.errors import RunError

__all__ = ["replace_directory", "replacing", "size", "sync", "write_tensors", "write_text", "writing"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into an error that names the place.

    Raises:
        RunError: if the disk is full or the place cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RunError(
            f"{path} cannot be written ({reason}); what was finished before is kept: free some space, "
            "then run the same command again or resume the run"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the place for a file's new content, which takes the name `path` once it is on disk; nothing is left of a
    write that failed.

    Raises:
        RunError: if the disk is full or the place cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            yield part
            sync(part)
            part.replace(path)
    except RunError:
        with suppress(OSError):
            part.unlink()
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, its tensors sorted by name."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replacing(path) as part:
        save_file(ordered, part, metadata={"format": "pt"})


def write_text(path: Path, text: str) -> None:
    """A text file."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def replace_directory(new: Path, path: Path) -> None:
    """Put the directory `new` in the place of `path`, which may exist; at every moment one of them is whole on disk."""
    old = path.with_name(f".{path.name}.old")
    with writing(path):
        for file in new.iterdir():
            sync(file)
        sync(new)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or a directory is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size(num_bytes: float) -> str:
    """For people.

    >>> size(2_180_000_000)
    '2.18 GB'
    """
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
