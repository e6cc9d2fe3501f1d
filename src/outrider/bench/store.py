"""The files of a run, written so that a crash at any moment costs at most the unit in flight.

    manifest.json    where the run comes from; written first, never changed
    units.jsonl      one line per finished unit, appended and synced; a torn last line is cut off on resuming
    verdicts.jsonl   one line per unit that was compared with plain decoding: its answers' verdicts
    report.json      the result, one line; its presence says that the run is finished
    report.md        the same as tables

Whole files are written under another name and renamed. One process at a time works in a run's directory.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, final

from filelock import FileLock, Timeout

from outrider.audit.verdict import Verdict
from outrider.bench.codec import from_plain, to_plain
from outrider.bench.provenance import Manifest, manifest_from_json, manifest_to_json
from outrider.bench.unit import UnitResult
from outrider.errors import RunError

__all__ = ["RunStore", "choose_directory", "settings_hash"]

MANIFEST, UNITS, VERDICTS, REPORT, TABLE = "manifest.json", "units.jsonl", "verdicts.jsonl", "report.json", "report.md"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the settings of a run."""
    return hashlib.sha256(json.dumps(to_plain(settings), sort_keys=True).encode()).hexdigest()


def choose_directory(root: Path, name: str, manifest: Manifest, resume: bool) -> Path:
    """The newest unfinished run of the same identity under `root`, if it is to be resumed, or a new path."""
    if resume and root.is_dir():
        unfinished = [path.parent for path in root.glob(f"*/{MANIFEST}") if not (path.parent / REPORT).exists()]
        for directory in sorted(unfinished, key=lambda path: path.name, reverse=True):
            if difference(_read_manifest(directory), manifest) is None:
                return directory
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    taken = sum(1 for _ in root.glob(f"{stamp}-{name}*"))
    return root / f"{stamp}-{name}{f'-{taken + 1}' if taken else ''}"


def difference(started: Manifest, now: Manifest) -> str | None:
    """The first thing that keeps a run from being continued, as "what it was, not what it is"; None if nothing."""
    before, after = dict(started.settings), to_plain(dict(now.settings))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            return f"{key}={before.get(key)}, not {key}={after.get(key)}"
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("prompts with hash", started.workload_hash[:12], now.workload_hash[:12]),
        ("the chat template with hash", started.template_hash, now.template_hash),
        ("commit", started.commit, now.commit),
        ("the processor", started.hardware.cpu, now.hardware.cpu),
        ("the GPUs", started.hardware.gpus, now.hardware.gpus),
    )
    return next((f"{name} {old}, not {new}" for name, old, new in facts if old != new), None)


@final
class RunStore:
    """A run's directory, locked for this process until `close`.

    Raises:
        RunError: if another process works there, it belongs to another run, or it cannot be written.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self._guard(lambda: directory.mkdir(parents=True, exist_ok=True))
        self._lock = FileLock(directory / ".lock")
        try:
            self._guard(lambda: self._lock.acquire(timeout=0))
        except Timeout:
            raise RunError(
                f"another process is measuring into {directory}; wait for it or give a new --run-dir"
            ) from None
        try:
            self.manifest = self._adopt(manifest)
            self.units = self._read_units()
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
        self._append_line(VERDICTS, json.dumps(to_plain({"unit": name, "verdicts": list(verdicts)})))
        self.units[name] = judged(self.units[name], verdicts)

    def finish(self, report: str, table: str) -> None:
        """Write the result; the run is finished."""
        self._write_whole(TABLE, table)
        self._write_whole(REPORT, report + "\n")

    def _adopt(self, manifest: Manifest) -> Manifest:
        path = self.directory / MANIFEST
        if not path.exists():
            strangers = [entry.name for entry in self.directory.iterdir() if entry.name != ".lock"]
            if strangers:
                raise RunError(f"{self.directory} holds '{strangers[0]}' but no run; give an empty or new --run-dir")
            self._write_whole(MANIFEST, manifest_to_json(manifest) + "\n")
            return manifest
        started = _read_manifest(self.directory)
        if differs := difference(started, manifest):
            raise RunError(
                f"{self.directory} was started with {differs}; resume with the same settings or give a new --run-dir"
            )
        return started

    def _read_units(self) -> dict[str, UnitResult]:
        units = {unit.unit: unit for unit in map(UnitResult.from_json, self._whole_lines(UNITS))}
        for line in self._whole_lines(VERDICTS):
            entry = json.loads(line)
            verdicts = [from_plain(Verdict, verdict) for verdict in entry["verdicts"]]
            units[entry["unit"]] = judged(units[entry["unit"]], verdicts)
        return units

    def _whole_lines(self, name: str) -> list[str]:
        """The lines of a file; what a crash left of a last one is cut off."""
        path = self.directory / name
        if not path.exists():
            return []
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self._guard(lambda: os.truncate(path, end))
        return [line.decode() for line in data[:end].splitlines()]

    def _append_line(self, name: str, line: str) -> None:
        path = self.directory / name
        size = path.stat().st_size if path.exists() else 0

        def write() -> None:
            with path.open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

        try:
            self._guard(write)
        except RunError:
            if path.exists():
                os.truncate(path, size)
            raise

    def _write_whole(self, name: str, text: str) -> None:
        path = self.directory / name
        part = path.with_name(f".{name}.part")

        def write() -> None:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)

        self._guard(write)

    def _guard(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if isinstance(error, Timeout):
                raise
            raise RunError(
                f"{self.directory} cannot be written ({error.strerror or error}); what is finished is kept there: "
                "free some space and run the same command again"
            ) from error


def judged(unit: UnitResult, verdicts: Sequence[Verdict]) -> UnitResult:
    """The unit with its answers' verdicts."""
    pairs = zip(unit.answers, verdicts, strict=True)
    return replace(unit, answers=tuple(replace(answer, verdict=verdict) for answer, verdict in pairs))


def _read_manifest(directory: Path) -> Manifest:
    try:
        return manifest_from_json((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the manifest in {directory} cannot be read ({error}); give a new --run-dir") from error
