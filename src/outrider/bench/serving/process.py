"""A server process: started, watched, and gone when we are.

The server runs under `guard.py`, in a process group of its own, and writes to a log. Whatever ends this process, an
error, Ctrl-C or a kill, closes the pipe that the guard reads, and the guard ends the group.

Example: `with ServerProcess(["python", "server.py"], log=Path("server.log")) as server: server.failure()` is None while
it runs, and "ended with status 1: ModuleNotFoundError: ... (log: server.log)" when it has died.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, final

import psutil

from outrider.bench.serving import guard
from outrider.errors import RunError

__all__ = ["ServerProcess", "last_words"]

LONGEST_WORDS = 300
LOG_END = 200_000
LONGEST_END_S = 5.0
ERROR = re.compile(r"\b(?:[A-Z]\w*(?:Error|Exception)|error): .+")
POINTER = "See root cause above"


@final
class ServerProcess:
    """Runs from construction to `stop`.

    Args:
        log: file that its standard output and standard error are appended to.
        grace_s: seconds from SIGTERM to SIGKILL.

    Raises:
        RunError: if the log cannot be written.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        grace_s: float = 20.0,
    ) -> None:
        self.log = log
        self.grace_s = grace_s
        self._status: int | None = None
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as stream:
                stream.write(f"$ {' '.join(command)}\n".encode())
                stream.flush()
                self._begin = stream.tell()
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", guard.__file__, str(grace_s), *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stream,
                    env=None if environment is None else dict(environment),
                    start_new_session=True,
                )
        except OSError as error:
            raise RunError(f"a server cannot be started with its log at {log} ({error.strerror or error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def failure(self) -> str | None:
        """Return how it ended and its last words; None while it runs."""
        if self._guard.poll() is None:
            return None
        if self._status is None:
            assert self._guard.stdout is not None
            said = b"" if self._guard.stdout.closed else self._guard.stdout.readline().strip()
            self._status = int(said) if said.removeprefix(b"-").isdigit() else -signal.SIGKILL
        ended = f"with status {self._status}" if self._status >= 0 else f"by {_signal_name(-self._status)}"
        words = last_words(self.log, self._begin)
        return f"ended {ended}{f': {words}' if words else ''} (log: {self.log})"

    def stop(self) -> None:
        """End it and all that it started; what does not go when asked is killed."""
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        family = self._family()
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        try:
            self._guard.wait(self.grace_s + 5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
        finally:
            _end(family)  # those that left the group too
        self.failure()
        self._guard.stdout.close()

    def _family(self) -> list[psutil.Process]:
        try:
            found: list[psutil.Process] = psutil.Process(self._guard.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found


def last_words(log: Path, begin: int = 0) -> str:
    """Return what a log most likely says went wrong: its last error that does not point to another one, else the last
    line."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(begin, size - LOG_END))
            text = stream.read(LOG_END).decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [found[0] for line in lines if (found := ERROR.search(line)) and POINTER not in line]
    return " ".join((named or lines or [""])[-1].split())[:LONGEST_WORDS]


def _end(family: Sequence[psutil.Process]) -> None:
    """Kill what still runs, and wait until it is gone or only its entry is left."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    end = time.monotonic() + LONGEST_END_S
    while any(map(_runs, family)) and time.monotonic() < end:
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
