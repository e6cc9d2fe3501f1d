"""Peers taking turns: their processes are opened, warmed up, asked round by round, and closed.

A round gives one group of prompts to every method, one after the other, forwards and backwards in turn: A B C, C B A.
Only one peer has work at any time. One that fails says why, takes no further part, and the others go on; what it has
measured stays.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ledger import Cell, Identity, Key, Ledger, Measurement, answers_of
from roster import FAILED, READY, WORKERS, Method, Peer, executable
from talk import PeerError, PeerProcess

START_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 180.0
PAUSE_S = 0.1
"""Between two measurements, so that the threads of the one are asleep when the other begins."""
WARM_UP_TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class Places:
    """The environments, the folder of logs, and the number of threads of a peer."""

    root: Path
    output: Path
    threads: int


@dataclass
class Running:
    """A process and the methods that it answers for; `process` is None once it is lost."""

    peer: Peer
    methods: tuple[Method, ...]
    process: PeerProcess | None = None
    lost: set[str] = field(default_factory=set)

    def key(self, method: Method) -> Key:
        return Key(self.peer.name, method.name)

    def takes(self, method: Method, cell: Cell) -> bool:
        return self.process is not None and method.name not in self.lost and cell.num_requests <= method.max_requests


class Race:
    """The rounds of a run.

    Args:
        prompts: id -> token ids.
        running: opened processes.
        deadline_s: on the monotonic clock; no round begins after it.
    """

    def __init__(
        self,
        ledger: Ledger,
        running: list[Running],
        prompts: dict[str, list[int]],
        max_new_tokens: int,
        *,
        deadline_s: float,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.ledger = ledger
        self.running = running
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.deadline_s = deadline_s
        self.pause_s = pause_s

    def run(self, cells: Sequence[Cell]) -> bool:
        """Measure what is missing; False if the deadline came first."""
        for number, cell in enumerate(cells):
            due = self._due(cell)
            if not due:
                continue
            if monotonic() > self.deadline_s:
                return False
            print(f"round {number + 1} of {len(cells)}: {', '.join(cell.prompts)}", file=sys.stderr, flush=True)
            for one, method in due if number % 2 == 0 else reversed(due):
                self._measure(one, method, cell)
        return True

    def _due(self, cell: Cell) -> list[tuple[Running, Method]]:
        return [
            (one, method)
            for one in self.running
            for method in one.methods
            if one.takes(method, cell) and not self.ledger.has(one.key(method), cell)
        ]

    def _measure(self, one: Running, method: Method, cell: Cell) -> None:
        if not one.takes(method, cell):
            return
        assert one.process is not None
        sleep(self.pause_s)
        order = {
            "op": "measure",
            "method": method.name,
            "prompts": [self.prompts[id] for id in cell.prompts],
            "max_new_tokens": self.max_new_tokens,
        }
        try:
            reply = one.process.ask(order, ANSWER_TIMEOUT_S)
        except PeerError as error:
            self._lose(one, method, str(error))
            return
        answers = answers_of(reply["answers"])
        self.ledger.add(Measurement(key=one.key(method), cell=cell, answers=answers, wall_s=reply["wall_s"]))

    def _lose(self, one: Running, method: Method, reason: str) -> None:
        """Drop a method that failed from this run, with all methods of its process."""
        assert one.process is not None
        alive = one.process.alive
        for lost in (method,) if alive else one.methods:
            one.lost.add(lost.name)
            self.ledger.fail(one.key(lost), reason)
        print(f"{one.peer.name} {method.name}: {reason}", file=sys.stderr, flush=True)


def left(one: Running, cells: list[Cell], ledger: Ledger) -> bool:
    """Return whether any of its methods misses a cell."""
    return any(
        not ledger.has(one.key(method), cell)
        for method in one.methods
        for cell in cells
        if cell.num_requests <= method.max_requests
    )


def start_peer(one: Running, places: Places, ledger: Ledger) -> None:
    """Start a process. Linux ends it with the thread that started it, so this is the main thread's work."""
    home = None if one.peer.home is None else places.root / one.peer.home
    environ = {
        "OMP_NUM_THREADS": str(places.threads),
        "MKL_NUM_THREADS": str(places.threads),
        "OUTRIDER_NUM_THREADS": str(places.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    log = places.output / "logs" / f"{one.peer.name}-{'-'.join(method.name for method in one.methods)}.log"
    try:
        one.process = PeerProcess([interpreter(home), str(WORKERS / one.peer.worker)], environ, log)
    except PeerError as error:
        give_up(one, str(error), ledger)


def open_peer(one: Running, order: dict[str, Any], places: Places, ledger: Ledger, warm_up: list[list[int]]) -> None:
    """Load its model and decode a little at every number of requests."""
    if one.process is None:
        return
    home = "" if one.peer.home is None else str(places.root / one.peer.home)
    methods = {method.name: method.settings for method in one.methods}
    try:
        answer = one.process.ask({**order, "op": "open", "methods": methods, "home": home}, START_TIMEOUT_S)
    except PeerError as error:
        give_up(one, str(error), ledger)
        return
    for method in one.methods:
        identity = Identity(**{name: answer[name] for name in ("version", "dtype", "notes")}, settings=method.shown)
        ledger.identify(one.key(method), identity)
        warm(one, method, warm_up, ledger)


def give_up(one: Running, reason: str, ledger: Ledger) -> None:
    close_peer(one)
    for method in one.methods:
        ledger.fail(one.key(method), reason)


def warm(one: Running, method: Method, prompts: list[list[int]], ledger: Ledger) -> None:
    """Request the first answers of a method, which are not measured."""
    for size in sorted({1, len(prompts)}):
        if size > method.max_requests or one.process is None or method.name in one.lost:
            continue
        order = {"op": "measure", "method": method.name, "prompts": prompts[:size], "max_new_tokens": WARM_UP_TOKENS}
        try:
            one.process.ask(order, START_TIMEOUT_S)
        except PeerError as error:
            one.lost.add(method.name)
            ledger.fail(one.key(method), str(error))


def close_peer(one: Running) -> None:
    if one.process is not None:
        one.process.close()
        one.process = None


def interpreter(home: Path | None) -> str:
    """Return the interpreter of a peer's environment; ours for a peer that is no Python package.

    Raises:
        PeerError: if it was not built; says why.
    """
    if home is None:
        return sys.executable
    if (home / FAILED).exists():
        raise PeerError((home / FAILED).read_text().strip())
    if not (home / READY).exists():
        raise PeerError("its environment was not built; run `make peers`")
    python = executable(home)
    return str(python) if python.exists() else sys.executable
