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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from outrider.bench.contender import Name
from outrider.bench.notes import Notes
from outrider.bench.serving.contender import ServedContender
from outrider.bench.serving.flags import serve_flags
from outrider.bench.serving.starter import Starter
from outrider.env import num_kernel_threads, num_usable_cores
from outrider.errors import CheckpointError, ConfigError
from outrider.export.llama import Speculation, on_llama
from outrider.export.serving import Order
from outrider.llama_cpp.environment import Llama
from outrider.llama_cpp.files import OUTTYPES, converted, quantised, target_file
from outrider.models.weight_kinds import is_quantised
from outrider.proposers import configure, with_checkpoint
from outrider.proposers.method_spec import MethodSpec, split_settings
from outrider.results.rows import PLAIN

__all__ = ["ENGINE", "LlamaServers"]

ENGINE = "llama.cpp"
DRAFT_KIND = "Q8_0"


@final
@dataclass(frozen=True)
class LlamaServers:
    """Makes the contenders of a run's methods on llama.cpp."""

    starter: Starter
    llama: Llama

    @property
    def description(self) -> str:
        """The engine, for readers of the results."""
        return f"llama.cpp {self.llama.version}, {self.model.name}"

    @cached_property
    def model(self) -> Path:
        """The target's file."""
        config = self.starter.config
        return target_file(self.llama, config.target, config.weights, config.dtype)

    def contenders(self, spec: MethodSpec, notes: Notes) -> list[ServedContender]:
        """Return the method on a server of its own; a note where llama.cpp cannot serve it.

        Plain decoding is always there: the others are compared with it.
        """
        starter, target = self.starter, self.starter.target
        excused = (ConfigError, *((CheckpointError,) if starter.is_optional(spec) else ()))
        found: list[ServedContender] = []
        with notes.leaving_out(f"{ENGINE} {spec.label}", *(() if spec.name == PLAIN else excused)):
            settings = with_checkpoint(spec.name, configure(spec.name, spec.settings), target)
            order = Order(config=settings, target=target, output=starter.exports(spec))
            speculation = on_llama(spec.name, order)
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
        return self.starter.contender(
            Name(ENGINE, label),
            lambda host, port: [str(self.llama.server), "--host", host, "--port", str(port), *flags],
            os.environ,
            f"{ENGINE} {label}",
        )

    def _flags(self, speculation: Speculation) -> list[str]:
        threads = str(num_kernel_threads() or num_usable_cores())
        slots = max(self.starter.config.batches)
        own: dict[str, str | None] = {
            "model": str(self.model),
            "threads": threads,
            "threads-batch": threads,
            "parallel": str(slots),
            "ctx-size": str(slots * self.starter.context),
            "cache-ram": "0",
            "no-context-shift": None,
            "no-webui": None,
            "metrics": None,
        }
        if speculation.draft is not None:
            own |= {"model-draft": str(self._draft(speculation.draft)), "spec-draft-threads": threads}
        return serve_flags(own | dict(speculation.flags), self.starter.config.serve)

    def _draft(self, directory: Path) -> Path:
        """Return the file of a draft model or head."""
        target = self.starter.target
        outtype = OUTTYPES[self.starter.config.dtype]
        whole = converted(self.llama, directory, outtype, target=target.checkpoint())
        return quantised(self.llama, whole, DRAFT_KIND) if is_quantised(target.spec.weights) else whole
