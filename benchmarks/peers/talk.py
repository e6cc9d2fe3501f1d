"""A peer's process, asked one JSON line at a time and given a limited time for each answer."""

import json
import os
import selectors
import subprocess
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any


class PeerError(Exception):
    """The peer said no, ended or did not answer; the message is the reason."""


class PeerProcess:
    """A worker that lives as long as the run.

    Args:
        command: interpreter and script.
        log: its stderr goes there.
    """

    def __init__(self, command: list[str], environ: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.rest = log, b""
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **environ},
            )

    def ask(self, order: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one order and return the answer.

        Raises:
            PeerError: if it failed, ended, or took longer than `timeout_s`; after that last one it is no more.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._line(timeout_s))
        except OSError:
            raise PeerError(self._epitaph()) from None
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """Let it end, and end it if it does not."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _line(self, timeout_s: float) -> bytes:
        assert self.process.stdout is not None
        end = monotonic() + timeout_s
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                if not ready.select(max(0.0, end - monotonic())):
                    self.process.kill()
                    raise PeerError(f"no answer within {timeout_s:.0f} s")
                if not (part := os.read(self.process.stdout.fileno(), 1 << 16)):
                    raise PeerError(self._epitaph())
                self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def _epitaph(self) -> str:
        """Return the exit status of a process that ended, and the last line of its log."""
        status = self.process.wait()
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"its process ended with {status}: {lines[-1][:200] if lines else 'no message'}"
