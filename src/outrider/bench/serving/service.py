"""Servers that answer: one that we start, or one that already runs.

Example: `service.start()` gives "http://127.0.0.1:41873/v1" when the server is healthy; `service.failure()` says how
it died, if it has; `service.stop()` leaves nothing running that we started.
"""

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

from outrider.bench.serving.process import ServerProcess
from outrider.errors import EndpointError, RunError
from outrider.http.client import ServerHttp

__all__ = ["Launched", "Remote", "Service"]

FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 0.5
HEALTH_S = 5.0
HOST = "127.0.0.1"


class Service(ABC):
    """A server, running or not."""

    @abstractmethod
    def start(self) -> str:
        """Make it ready; its address, up to and with /v1.

        Raises:
            RunError: if it does not become healthy.
        """

    @abstractmethod
    def failure(self) -> str | None:
        """Return how it died, as the end of "the server ..."; None while it runs or where that is unknown."""

    @abstractmethod
    def stop(self) -> None:
        """End what `start` began."""


@final
class Launched(Service):
    """A server of our own.

    Args:
        label: name of the served method, for messages.
        command: function from a host and a port to the command line.
        environment: variables of its process.
        log: file for its output.
        timeout_s: seconds until it must be healthy.
        grace_s: seconds from SIGTERM to SIGKILL.
        tell: called with what takes long.
    """

    def __init__(
        self,
        label: str,
        command: Callable[[str, int], Sequence[str]],
        *,
        environment: Mapping[str, str],
        log: Path,
        timeout_s: float,
        grace_s: float = 20.0,
        tell: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.label = label
        self.command = command
        self.environment = environment
        self.log = log
        self.timeout_s = timeout_s
        self.grace_s = grace_s
        self.tell = tell
        self._process: ServerProcess | None = None

    def start(self) -> str:
        port = _free_port()
        self.tell(f"starting the server of {self.label} (log: {self.log})")
        self._process = ServerProcess(
            self.command(HOST, port), log=self.log, environment=self.environment, grace_s=self.grace_s
        )
        try:
            self._wait(f"http://{HOST}:{port}/health")
        except BaseException:
            self.stop()
            raise
        return f"http://{HOST}:{port}/v1"

    def failure(self) -> str | None:
        return None if self._process is None else self._process.failure()

    def stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.stop()

    def _wait(self, address: str) -> None:
        end, wait_s = time.monotonic() + self.timeout_s, FIRST_WAIT_S
        while not _is_healthy(address):
            if failure := self.failure():
                raise RunError(f"the server of {self.label} {failure}; mend the cause and run the same command again")
            if time.monotonic() > end:
                raise RunError(
                    f"the server of {self.label} was not ready after {self.timeout_s:g} s (log: {self.log}); "
                    "raise --start-timeout or mend the cause, and run the same command again"
                )
            time.sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, 1.2 * wait_s)


@final
class Remote(Service):
    """A server that already runs elsewhere; one replica, or a router in front of many."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def start(self) -> str:
        return self.url

    def failure(self) -> str | None:
        return None

    def stop(self) -> None:
        """Stop nothing: the server belongs to someone else."""


def _is_healthy(address: str) -> bool:
    async def ask() -> None:
        http = ServerHttp(timeout_s=HEALTH_S)
        try:
            await http.text(address)
        finally:
            await http.close()

    try:
        asyncio.run(ask())
    except EndpointError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
