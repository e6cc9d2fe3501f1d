"""The start of a run's servers: everything between a command line and a contender that engines share.

Example: `starter.contender(Name("vllm", "ngram"), command, os.environ)` logs to `servers/ngram.log` in the run's
directory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from outrider.bench.config import BenchConfig
from outrider.bench.contender import Name
from outrider.bench.serving.contender import Reader, ServedContender
from outrider.bench.serving.flags import file_name
from outrider.bench.serving.service import Launched, Service
from outrider.proposers import known_method
from outrider.proposers.method_spec import MethodSpec
from outrider.target import Target

__all__ = ["Starter"]

SLACK: Final = 64
"""Positions behind the longest text, so that drafts at its end need not be cut."""


@final
@dataclass(frozen=True)
class Starter:
    """Settings and steps that the servers of a run have in common.

    max_len    tokens of the longest text
    directory  the run's directory, for exports and logs
    tell       called with what takes long
    """

    config: BenchConfig
    target: Target
    reader: Reader
    max_len: int
    directory: Path
    tell: Callable[[str], None]

    @property
    def context(self) -> int:
        """Positions that a server needs for each request."""
        return min(self.max_len + SLACK, self.target.spec.max_positions)

    def exports(self, spec: MethodSpec) -> Path:
        """Return the directory in which a method's head is exported."""
        return (self.directory / "exports" / file_name(spec.label)).resolve()

    def is_optional(self, spec: MethodSpec) -> bool:
        """Return whether a method may be left out where it has no weights."""
        return any(spec.name == known_method(text.partition(":")[0]) for text in self.config.optional)

    def contender(
        self, name: Name, command: Callable[[str, int], Sequence[str]], environment: Mapping[str, str], log: str
    ) -> ServedContender:
        """Return a method on a server of its own.

        Args:
            command: function from a host and a port to the command line.
            log: name of the server's log.
        """
        service = Launched(
            f"{name.engine} {name.method}",
            command,
            environment=environment,
            log=self.directory / "servers" / f"{file_name(log)}.log",
            timeout_s=self.config.start_timeout,
            tell=self.tell,
        )
        return self.served(name, service)

    def served(
        self, name: Name, service: Service, *, model: str | None = None, metrics: Sequence[str] = ()
    ) -> ServedContender:
        """Return a method on a server; arguments as of `ServedContender`."""
        return ServedContender(
            name,
            service,
            self.reader,
            temperatures=self.config.temperatures,
            stall_s=self.config.stall_timeout,
            model=model,
            metrics=metrics,
        )
