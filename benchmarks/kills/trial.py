"""One trial: a command is started in a forked process, killed, and run again to its end."""

import contextlib
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kills.commands import Command
from benchmarks.kills.pieces import Pieces, watch

from outrider.cli import main as outrider_main
from outrider.env import cache_home

__all__ = ["Tally", "finished", "trial"]

STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
"""Exit status that each signal shall end a command with."""
DRAWN = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LIMIT_S = 600.0


@dataclass
class Tally:
    """Counts of one command: its trials, kills by signal, pieces that were finished before a kill, failures."""

    num_trials: int = 0
    num_kills: Counter[str] = field(default_factory=Counter)
    num_pieces: int = 0
    num_again: int = 0
    num_failures: int = 0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {name}" for name, count in sorted(self.num_kills.items())) or "no kill"
        return (
            f"{self.num_trials} trials, {kills}; {self.num_pieces} pieces were finished before a kill, "
            f"{self.num_again} made again; {self.num_failures} failures"
        )

    def plain(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        return {**vars(self), "num_kills": dict(self.num_kills)}


def trial(command: Command, place: Path, seconds: float, rng: random.Random, tally: Tally) -> str | None:
    """Kill a command up to three times and run it to its end; what went wrong, or None.

    Args:
        seconds: time of an undisturbed run.
    """
    before: Pieces = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        number, delay = rng.choice(DRAWN), rng.uniform(0.0, 1.1 * seconds)
        child = _started(command.next(place), place)
        status = _ended(child, delay)
        if status is None:
            os.kill(child, number)
            status = _ended(child, LIMIT_S)
            tally.num_kills[number.name] += 1
            if status is None:
                os.kill(child, signal.SIGKILL)
                return f"{number.name} after {delay:.2f} s did not end it"
        if status not in (0, STATUS[number], -number):
            return f"{number.name} after {delay:.2f} s ended it with status {status}: {_last(place)}"
        if reason := _made_again(before, now := command.pieces(place), tally):
            return reason
        tally.num_pieces += len(now.keys() - before.keys()) if status != 0 else 0
        before = now
        if status == 0:
            break
    if status != 0 and (reason := finished(command.next(place), place)):
        return f"the run after the kill {reason}"
    if reason := _made_again(before, command.pieces(place), tally):
        return reason
    log = (place.parent / "log").read_text(errors="replace")
    return f"a traceback: {_last(place)}" if "Traceback" in log else None


def _made_again(before: Pieces, now: Pieces, tally: Tally) -> str | None:
    again = [name for name, value in before.items() if name not in now or now[name] != value]
    tally.num_again += len(again)
    return f"made again: {', '.join(again[:3])}, {len(again)} in all of {len(before)}" if again else None


def finished(arguments: Sequence[str], place: Path) -> str | None:
    """Run a command to its end; why that failed, or None."""
    status = _ended(child := _started(arguments, place), LIMIT_S)
    if status is None:
        os.kill(child, signal.SIGKILL)
        _ended(child, LIMIT_S)
    return None if status == 0 else f"ended with status {status}: {_last(place)}"


def _started(arguments: Sequence[str], place: Path) -> int:
    """Fork a process that runs the command, with a cache of the trial's own; return its number."""
    cache = place.parent / "cache"
    if not cache.exists():
        cache.mkdir(parents=True)
        kernels = cache_home() / "kernels"  # compiled once for all
        kernels.mkdir(parents=True, exist_ok=True)
        (cache / "kernels").symlink_to(kernels)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ["OUTRIDER_CACHE"] = str(cache)
        watch(place)
        with (place.parent / "log").open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = outrider_main(list(arguments))
    except KeyboardInterrupt:  # before the command could listen
        status = 130
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 2
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def _ended(child: int, limit: float) -> int | None:
    """Return the status of a process, or None if it still runs after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def _last(place: Path) -> str:
    lines = [line for line in (place.parent / "log").read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-2:])[-400:]
