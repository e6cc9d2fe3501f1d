"""The measurements of a race, kept line by line in a JSONL file: a run that was stopped goes on where it was.

{"kind": "run", ...}          the settings; a file with others is refused
{"kind": "peer", ...}         version, dtype and notes of a method's engine
{"kind": "failure", ...}      why a method did not run; forgotten once it does
{"kind": "measurement", ...}  one group of prompts, one method, one repeat
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from outrider.errors import RunError


class Key(NamedTuple):
    """A row of the table."""

    engine: str
    method: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The input of all methods in one round: these prompts at once, for the n-th time."""

    num_requests: int
    category: str
    prompts: tuple[str, ...]
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The tokens of one request, and (seconds, tokens so far) as they came in, where known."""

    tokens: tuple[int, ...]
    arrivals: tuple[tuple[float, int], ...] | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One method in one cell."""

    key: Key
    cell: Cell
    answers: tuple[Answer, ...]
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The engine and method that ran."""

    version: str
    dtype: str
    notes: str
    settings: str


class Ledger:
    """The file and what it holds.

    Args:
        path: created if missing; None keeps nothing on disk.
        settings: all that must be equal for measurements to be comparable.

    Raises:
        RunError: if the file was written with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.measurements: dict[tuple[Key, Cell], Measurement] = {}
        self.identities: dict[Key, Identity] = {}
        self.failures: dict[Key, str] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._lines(path)
        wanted = json.loads(json.dumps({"kind": "run", **settings}))
        if lines and lines[0] != wanted:
            other = [name for name in wanted if lines[0].get(name) != wanted[name]]
            raise RunError(f"{path} was written with another {' and '.join(other)}; give another --output or remove it")
        if not lines:
            self._write(wanted)
        for line in lines[1:]:
            self._take(line)

    def add(self, measurement: Measurement) -> None:
        self.measurements[measurement.key, measurement.cell] = measurement
        self.failures.pop(measurement.key, None)
        self._write({"kind": "measurement", **asdict(measurement), "key": measurement.key._asdict()})

    def fail(self, key: Key, reason: str) -> None:
        self.failures[key] = reason
        self._write({"kind": "failure", "key": key._asdict(), "reason": reason})

    def identify(self, key: Key, identity: Identity) -> None:
        self.identities[key] = identity
        self._write({"kind": "peer", "key": key._asdict(), **asdict(identity)})

    def has(self, key: Key, cell: Cell) -> bool:
        return (key, cell) in self.measurements

    @staticmethod
    def _lines(path: Path) -> list[dict[str, Any]]:
        """Read the complete lines; the last may be incomplete, and is then removed."""
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, separators=(",", ":")) + "\n")

    def _take(self, line: dict[str, Any]) -> None:
        key = Key(**line["key"])
        match line["kind"]:
            case "peer":
                names = ("version", "dtype", "notes", "settings")
                self.identities[key] = Identity(**{name: line[name] for name in names})
            case "failure":
                self.failures[key] = line["reason"]
            case "measurement":
                cell = Cell(**{**line["cell"], "prompts": tuple(line["cell"]["prompts"])})
                found = Measurement(key=key, cell=cell, answers=answers_of(line["answers"]), wall_s=line["wall_s"])
                self.measurements[key, cell] = found
                self.failures.pop(key, None)


def answers_of(plain: list[dict[str, Any]]) -> tuple[Answer, ...]:
    """Read answers as a worker or the file writes them."""
    return tuple(
        Answer(
            tokens=tuple(answer["tokens"]),
            arrivals=None if answer["arrivals"] is None else tuple((t, n) for t, n in answer["arrivals"]),
        )
        for answer in plain
    )
