"""The files of a run, written so that a crash at any moment costs at most the unit in flight.

    manifest.json    where the run comes from; written first, never changed
    units.jsonl      one line per finished unit, appended and synced; a torn last line is cut off on resuming, and a
                     damaged one is named: without it, its unit is measured again
    verdicts.jsonl   one line per unit that was compared with plain decoding: its answers' verdicts
    traces.jsonl     one line per answer that was recorded step by step, behind the measurements
    report.json      the result, one line; its presence says that the run is finished
    report.md        the same as tables

Whole files are written under another name and renamed. One process at a time works in a run's directory. A directory
in which a run was killed before it had a manifest, or whose manifest is cut off before any unit was kept, starts anew.
"""

import errno
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar, final

from outrider.errors import RunError, on_one_line
from outrider.records.codec import to_plain
from outrider.records.files import LOCK, lock_directory, replacing
from outrider.records.provenance import Manifest, manifest_from_json, manifest_to_json
from outrider.results.equality.verdict import Verdict
from outrider.results.kept import judged, read_traces, read_units, read_verdicts
from outrider.results.unit import UnitResult
from outrider.traces.trace import Trace

__all__ = ["TRACES", "RunStore", "choose_directory"]

MANIFEST, UNITS, VERDICTS, REPORT, TABLE = "manifest.json", "units.jsonl", "verdicts.jsonl", "report.json", "report.md"
TRACES = "traces.jsonl"
T = TypeVar("T")
MOST_DIFFERENCES = 5


def choose_directory(root: Path, name: str, manifest: Manifest, resume: bool) -> Path:
    """Return the newest unfinished run of the same identity under `root`, if it is to be resumed, or a new path."""
    if resume and root.is_dir():
        unfinished = [path.parent for path in root.glob(f"*/{MANIFEST}") if not (path.parent / REPORT).exists()]
        for directory in sorted(unfinished, key=lambda path: path.name, reverse=True):
            if _is_started_as(directory, manifest):
                return directory
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    taken = sum(1 for _ in root.glob(f"{stamp}-*"))
    return root / f"{stamp}-{_file_name(name)}{f'-{taken + 1}' if taken else ''}"


def _is_started_as(directory: Path, manifest: Manifest) -> bool:
    """Return whether a run there can be continued; one whose manifest is damaged stands in nobody's way."""
    try:
        return difference(_read_manifest(directory), manifest) is None
    except RunError:
        return False


def _file_name(name: str) -> str:
    """Return the name as part of a directory's."""
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name)[:60] or "bench"


def difference(started: Manifest, now: Manifest) -> str | None:
    """Return what keeps a run from being continued, as "what it was, not what it is"; None if nothing."""
    before, after = dict(started.settings), to_plain(dict(now.settings))
    found = [
        f"{key}={before.get(key)}, not {key}={after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("prompts with hash", started.workload_hash[:12], now.workload_hash[:12]),
        ("the chat template with hash", started.template_hash, now.template_hash),
        ("commit", started.commit, now.commit),
        ("the processor", started.hardware.cpu, now.hardware.cpu),
        ("the GPUs", started.hardware.gpus, now.hardware.gpus),
    )
    found += [f"{name} {old}, not {new}" for name, old, new in facts if old != new]
    more = [f"{len(found) - MOST_DIFFERENCES} more"] * (len(found) > MOST_DIFFERENCES)
    return "; ".join(on_one_line(text, 150) for text in (*found[:MOST_DIFFERENCES], *more)) or None


@final
class RunStore:
    """A run's directory, locked for this process until `close`.

    Raises:
        RunError: if another process works there, it belongs to another run, or it cannot be written.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self._places: dict[str, str] = {}
        self._lock = self._guard(lambda: lock_directory(directory, "measuring into", "a new --run-dir"))
        try:
            self.manifest = self._adopt(manifest)
            self.units = self._read_units()
            self._mend_end(TRACES)
            self.traces = read_traces(self.directory / TRACES)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes work here."""
        self._lock.release()

    def append(self, unit: UnitResult) -> None:
        """Keep a finished unit."""
        assert unit.unit not in self.units, f"{unit.unit} was measured twice"
        self._append_line(UNITS, unit.to_json())
        self.units[unit.unit] = unit

    def judge(self, name: str, verdicts: Sequence[Verdict]) -> None:
        """Keep the verdicts on the answers of a unit, in their order."""
        self._append_line(VERDICTS, _line_of(name, verdicts))
        self.units[name] = judged(self.units[name], verdicts)

    def keep_trace(self, trace: Trace) -> None:
        """Keep the trace of an answer."""
        self._append_line(TRACES, trace.to_json())
        self.traces[trace.key] = trace

    def finish(self, report: str, table: str) -> None:
        """Write the result; the run is finished."""
        self._write_whole(TABLE, table)
        self._write_whole(REPORT, report + "\n")

    def place(self, name: str) -> str:
        """Return where a unit stands, for messages."""
        return self._places.get(name, str(self.directory / UNITS))

    def _adopt(self, manifest: Manifest) -> Manifest:
        names = self._guard(lambda: sorted(entry.name for entry in self.directory.iterdir()))
        if self._is_new(names):
            self._write_whole(MANIFEST, manifest_to_json(manifest) + "\n")
            return manifest
        started = _read_manifest(self.directory)
        if differs := difference(started, manifest):
            raise RunError(
                f"{self.directory} was started with {differs}; resume with the same settings or give a new --run-dir"
            )
        return started

    def _is_new(self, names: Sequence[str]) -> bool:
        """Return whether nothing is kept here yet: at most what a run leaves that is killed as it begins."""
        if MANIFEST in names:
            return set(names) <= LEFTOVERS | {MANIFEST} and _is_cut_off(self.directory / MANIFEST)
        if strangers := [name for name in names if name not in LEFTOVERS]:
            raise RunError(
                f"{self.directory} holds '{on_one_line(strangers[0])}' but no run; give an empty or new --run-dir"
            )
        return True

    def _read_units(self) -> dict[str, UnitResult]:
        for name in (UNITS, VERDICTS):
            self._mend_end(name)
        kept = read_units(self.directory / UNITS)
        self._places = {name: one.place for name, one in kept.items()}
        verdicts = read_verdicts(self.directory / VERDICTS, kept)
        if verdicts.has_strays:  # or they would count for the unit that is measured in their place
            self._write_whole(VERDICTS, "".join(_line_of(*one) + "\n" for one in verdicts.found.items()))
        units = {name: one.unit for name, one in kept.items()}
        return units | {name: judged(units[name], found) for name, found in verdicts.found.items()}

    def _mend_end(self, name: str) -> None:
        """Cut off what a crash left of a last line; one that is whole but for its newline gets that."""
        path = self.directory / name
        if not path.is_file():
            return
        data = self._guard(path.read_bytes)
        end = data.rfind(b"\n") + 1
        if end == len(data):
            return
        if _is_json(data[end:]):
            self._append(path, b"\n")
        else:
            self._guard(lambda: os.truncate(path, end))

    def _append_line(self, name: str, line: str) -> None:
        path = self.directory / name
        size = path.stat().st_size if path.exists() else 0
        try:
            self._append(path, line.encode() + b"\n")
        except RunError:
            if path.exists():
                os.truncate(path, size)
            raise

    def _append(self, path: Path, data: bytes) -> None:
        def write() -> None:
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        self._guard(write)

    def _write_whole(self, name: str, text: str) -> None:
        def write() -> None:
            with replacing(self.directory / name) as part:
                part.write_text(text, encoding="utf-8")

        self._guard(write)

    def _guard(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (OSError, ValueError) as error:
            reason = on_one_line(error.strerror or str(error) if isinstance(error, OSError) else str(error))
            full = "free some space" if isinstance(error, OSError) and error.errno in FULL else "mend that"
            raise RunError(
                f"{self.directory} cannot be written ({reason}); what is finished is kept there: {full} and run the "
                "same command again, or give a new --run-dir"
            ) from error


LEFTOVERS = {LOCK, *(f".{name}.part" for name in (MANIFEST, REPORT, TABLE, VERDICTS))}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _line_of(name: str, verdicts: Sequence[Verdict]) -> str:
    return json.dumps(to_plain({"unit": name, "verdicts": list(verdicts)}))


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _is_cut_off(manifest: Path) -> bool:
    """Return whether a manifest is the beginning of one, or empty."""
    try:
        data = manifest.read_bytes()
    except OSError:
        return False
    return not data.strip(b"\0 \n") or (data.startswith(b'{"schema": "outrider.run/') and not _is_json(data))


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    try:
        return manifest_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RunError) as error:
        raise RunError(f"{path} cannot be read ({on_one_line(str(error))}); give a new --run-dir") from error
