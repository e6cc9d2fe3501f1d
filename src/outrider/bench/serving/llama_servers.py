"""llama.cpp servers for a benchmark: one for plain decoding and one for each method.

A method that llama.cpp does not have is left out, and the report says so. The target is served from its GGUF file, or
from one that llama.cpp's converter writes; draft models and heads are exported, converted and, where the target's
weights are quantised, quantised to Q8_0 as ours are. What the user asks of the server, such as `cache-type-k=q8_0`,
replaces our own flags.

The prompt cache is off, so that a repeat reads its prompt again.

Example: prompt lookup of 8 tokens is served with `--spec-type ngram-simple --spec-ngram-simple-size-m 8`.
"""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from outrider.bench.config import BenchConfig
from outrider.bench.contender import Name
from outrider.bench.notes import Notes
from outrider.bench.serving.contender import Reader, ServedContender
from outrider.bench.serving.flags import file_name, serve_flags
from outrider.bench.serving.service import Launched
from outrider.env import num_kernel_threads, num_usable_cores
from outrider.errors import CheckpointError, ConfigError
from outrider.export.llama import Speculation, on_llama
from outrider.export.serving import Order
from outrider.llama_cpp.environment import Llama
from outrider.llama_cpp.files import OUTTYPES, converted, quantised, target_file
from outrider.models.weight_kinds import is_quantised
from outrider.proposers import configure, known_method, with_checkpoint
from outrider.proposers.method_spec import MethodSpec, split_settings
from outrider.results.rows import PLAIN
from outrider.target import Target

__all__ = ["ENGINE", "LlamaServers"]

ENGINE = "llama.cpp"
SLACK = 64
"""Positions behind the longest text, so that drafts at its end need not be cut."""
DRAFT_KIND = "Q8_0"


@final
@dataclass(frozen=True)
class LlamaServers:
    """Makes the contenders of a run's methods on llama.cpp."""

    config: BenchConfig
    target: Target
    reader: Reader
    max_len: int
    directory: Path
    tell: Callable[[str], None]
    llama: Llama

    @property
    def description(self) -> str:
        """The engine, for readers of the results."""
        return f"llama.cpp {self.llama.version}, {self.model.name}"

    @cached_property
    def model(self) -> Path:
        """The target's file."""
        return target_file(self.llama, self.config.target, self.config.weights, self.config.dtype)

    def contenders(self, spec: MethodSpec, notes: Notes) -> list[ServedContender]:
        """Return the method on a server of its own; a note where llama.cpp cannot serve it.

        Plain decoding is always there: the others are compared with it.
        """
        is_optional = any(spec.name == known_method(text.partition(":")[0]) for text in self.config.optional)
        excused = () if spec.name == PLAIN else (ConfigError, *((CheckpointError,) if is_optional else ()))
        found: list[ServedContender] = []
        with notes.leaving_out(f"{ENGINE} {spec.label}", *excused):
            output = (self.directory / "exports" / file_name(spec.label)).resolve()
            settings = with_checkpoint(spec.name, configure(spec.name, spec.settings), self.target)
            speculation = on_llama(spec.name, Order(config=settings, target=self.target, output=output))
            found.append(self._contender(spec.label, speculation, notes))
        return found

    def kind(self, text: str, notes: Notes) -> ServedContender:
        """Return a kind of llama.cpp's own speculation, written as its name with flags, on a server of its own."""
        name, flags = split_settings(text)
        own = {key.replace("_", "-"): value for key, value in flags.items()}
        return self._contender(text, Speculation(flags={"spec-type": name, **own}), notes)

    def _contender(self, label: str, speculation: Speculation, notes: Notes) -> ServedContender:
        flags = self._flags(speculation)
        notes.texts += [f"{ENGINE} {label}: {note}" for note in speculation.notes]
        notes.texts.append(f"{ENGINE} {label}: {shlex.join(['llama-server', *flags])}")
        service = Launched(
            f"{ENGINE} {label}",
            lambda host, port: [str(self.llama.server), "--host", host, "--port", str(port), *flags],
            environment=os.environ,
            log=self.directory / "servers" / f"{file_name(f'{ENGINE} {label}')}.log",
            timeout_s=self.config.start_timeout,
            tell=self.tell,
        )
        return ServedContender(
            Name(ENGINE, label),
            service,
            self.reader,
            temperatures=self.config.temperatures,
            stall_s=self.config.stall_timeout,
        )

    def _flags(self, speculation: Speculation) -> list[str]:
        threads = str(num_kernel_threads() or num_usable_cores())
        slots = max(self.config.batches)
        length = min(self.max_len + SLACK, self.target.spec.max_positions)
        own: dict[str, str | None] = {
            "model": str(self.model),
            "threads": threads,
            "threads-batch": threads,
            "parallel": str(slots),
            "ctx-size": str(slots * length),
            "cache-ram": "0",
            "no-context-shift": None,
            "no-webui": None,
            "metrics": None,
        }
        if speculation.draft is not None:
            own |= {"model-draft": str(self._draft(speculation.draft)), "spec-draft-threads": threads}
        return serve_flags(own | dict(speculation.flags), self.config.serve)

    def _draft(self, directory: Path) -> Path:
        """Return the file of a draft model or head."""
        target = self.target.checkpoint()
        whole = converted(self.llama, directory, OUTTYPES[self.config.dtype], target=target)
        return quantised(self.llama, whole, DRAFT_KIND) if is_quantised(self.target.spec.weights) else whole
