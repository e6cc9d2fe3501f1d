"""Finished pieces of an audit on disk, so that an interrupted one goes on where it was.

A piece is one comparison, one sample, or one planted fault. Pieces lie in `audits/KEY` of the cache until the report is
delivered. The key is a hash of all that a piece depends on: settings, prompts, the files of target and heads (path,
size, time), the code of Outrider and of each method, versions, hardware and threads. So no piece of another audit is
used, and none from before a mended fault.

Example: `kept.piece("ngram, coupled, batch 1, T=0", Finding, compare)` calls `compare` unless an earlier run has.
"""

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar, final

from outrider.costs.identity import identity_of
from outrider.env import PACKAGE, cache_home
from outrider.errors import RunError
from outrider.proposer import Proposer
from outrider.proposers.method_spec import MethodSpec, written
from outrider.records.codec import dumps, from_plain, to_plain
from outrider.records.files import lock_directory, sha256_of, write_text
from outrider.records.provenance import Manifest
from outrider.target import Target

__all__ = ["Kept", "directory_of", "keeping"]

T = TypeVar("T")
PIECES: Final = "pieces.json"


@final
class Kept:
    """Pieces by name; without a directory they are kept nowhere."""

    def __init__(self, directory: Path | None = None) -> None:
        self._path = None if directory is None else directory / PIECES
        self._pieces: dict[str, Any] = {} if self._path is None else _read(self._path)

    def piece(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """Return a piece: what an earlier run has kept, or what `make` gives, which is kept from now on."""
        if name in self._pieces:
            with suppress(RunError):  # a damaged one is made again
                return from_plain(kind, self._pieces[name])
        found = make()
        if self._path is not None:
            self._pieces[name] = to_plain(found)
            write_text(self._path, dumps(self._pieces) + "\n")
        return found


@contextmanager
def keeping(directory: Path | None, started: Callable[[Path], None]) -> Iterator[Kept]:
    """Yield the pieces of a directory; remove it at the end, unless that is an error or an interruption.

    Args:
        started: told of the directory.

    Raises:
        RunError: if another process works there, or it cannot be written.
    """
    if directory is None:
        yield Kept()
        return
    with lock_directory(directory, "making the same audit in", "another --seed"):
        started(directory)
        yield Kept(directory)
        shutil.rmtree(directory, ignore_errors=True)


def directory_of(manifest: Manifest, target: Target, methods: Sequence[tuple[MethodSpec, type[Proposer]]]) -> Path:
    """Return the place of an audit's pieces."""
    settings = {name: value for name, value in manifest.settings.items() if name not in ("output", "page")}
    kept = ("versions", "threads", "workload_hash", "template_hash")
    facts = {
        "settings": settings,
        "manifest": {name: getattr(manifest, name) for name in kept},
        "target": [asdict(identity_of(target)), _stamps(target.spec.source)],
        "methods": [
            [written(one), [_stamps(value) for value in one.settings.values()], _source(kind)] for one, kind in methods
        ],
        "code": sha256_of(*sorted(PACKAGE.rglob("*.py"))),
    }
    key = hashlib.sha256(json.dumps(to_plain(facts), sort_keys=True).encode()).hexdigest()[:16]
    return cache_home() / "audits" / key


def _stamps(place: Any) -> list[str]:
    """Return path, size and time of the files of a model, or of another setting that is a path."""
    if not isinstance(place, str | Path) or not (path := Path(place)).exists():
        return [str(place)]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [f"{file.resolve()}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for file in files]


def _source(kind: type[Proposer]) -> str:
    """Return a hash of a method's code: its file, or all files beside it in a package."""
    try:
        path = Path(inspect.getfile(kind))
        return sha256_of(*(sorted(path.parent.glob("*.py")) if "." in kind.__module__ else [path]))
    except (OSError, TypeError):  # made in a console
        return ""


def _read(path: Path) -> dict[str, Any]:
    """Return the pieces of a file; none if it is damaged: then all are made again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
