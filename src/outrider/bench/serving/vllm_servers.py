"""vLLM servers for a benchmark: one for plain decoding and one for each method.

A method that vLLM does not have is left out, and the report says so. A head that is not yet an export is exported into
the run's directory. What the user asks of the server, such as `tensor-parallel-size=2`, replaces our own flags.

Example: prompt lookup is served with `--speculative-config {"method": "ngram", ...}`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from outrider.bench.config import BenchConfig
from outrider.bench.contender import Name
from outrider.bench.notes import Notes
from outrider.bench.serving.contender import Reader, ServedContender
from outrider.bench.serving.flags import file_name, serve_flags
from outrider.bench.serving.service import Launched
from outrider.errors import CheckpointError, ConfigError
from outrider.export.exported import Exported, served_name
from outrider.export.serving import Order, on_vllm
from outrider.proposers import configure, known_method, with_checkpoint
from outrider.proposers.method_spec import MethodSpec
from outrider.results.rows import PLAIN
from outrider.target import Target
from outrider.vllm.custom_drafters import import_path, on_custom_class
from outrider.vllm.environment import Vllm

__all__ = ["VllmServers"]

SLACK = 64
"""Positions behind the longest text, so that drafts at its end need not be cut."""


@final
@dataclass(frozen=True)
class VllmServers:
    """Makes the contenders of a run's methods on vLLM."""

    config: BenchConfig
    target: Target
    reader: Reader
    max_len: int
    directory: Path
    tell: Callable[[str], None]
    vllm: Vllm

    @property
    def description(self) -> str:
        """The engine, for readers of the results."""
        return f"vllm {self.vllm.version} ({'CPU build' if self.vllm.is_cpu else 'GPU build'})"

    def contenders(self, spec: MethodSpec, notes: Notes) -> list[ServedContender]:
        """Return the method on servers of its own: as vLLM has it, and with our code in it; a note where that fails.

        Plain decoding is always there: the others are compared with it.
        """
        built: list[tuple[str, Exported, dict[str, str]]] = []
        if "vllm" in self.config.engines or spec.name == PLAIN:
            is_optional = any(spec.name == known_method(text.partition(":")[0]) for text in self.config.optional)
            with notes.leaving_out(spec.label, ConfigError, *((CheckpointError,) if is_optional else ())):
                built.append((spec.label, self._built_in(spec), {}))
        if "vllm-custom" in self.config.engines and spec.name != PLAIN:
            label, path = f"{spec.label} by outrider", str(import_path(self.directory / "imports"))
            with notes.leaving_out(label, ConfigError):
                exported = self._checked(on_custom_class(spec.name, spec.settings, self.target.spec))
                built.append((label, exported, {"PYTHONPATH": path}))
        return [self._contender(*one, notes) for one in built]

    def _contender(self, label: str, exported: Exported, variables: dict[str, str], notes: Notes) -> ServedContender:
        model, flags = served_name(self.target), self._flags(exported)
        notes.texts += [f"vllm {label}: {note}" for note in exported.notes]
        notes.texts.append(f"vllm {label}: {self.vllm.command(model, flags)}")
        service = Launched(
            f"vllm {label}",
            lambda host, port: [*self.vllm.launcher, model, "--host", host, "--port", str(port), *flags],
            environment=self.vllm.environment(os.environ, offline=self.target.spec.source is not None) | variables,
            log=self.directory / "servers" / f"{file_name(label)}.log",
            timeout_s=self.config.start_timeout,
            tell=self.tell,
        )
        return ServedContender(
            Name("vllm", label),
            service,
            self.reader,
            temperatures=self.config.temperatures,
            stall_s=self.config.stall_timeout,
        )

    def _built_in(self, spec: MethodSpec) -> Exported:
        """Return the method as vLLM has it.

        Raises:
            ConfigError: if it has none that fits.
            CheckpointError: if there are no weights to export.
        """
        output = (self.directory / "exports" / file_name(spec.label)).resolve()
        settings = with_checkpoint(spec.name, configure(spec.name, spec.settings), self.target)
        exported = on_vllm(spec.name, Order(config=settings, target=self.target, output=output))
        if exported is None:
            raise ConfigError("vLLM has no such method")
        return self._checked(exported)

    def _checked(self, exported: Exported) -> Exported:
        """Return what this vLLM can serve, as it is; refuse the rest."""
        method = exported.speculative.get("method")
        if method is not None and self.vllm.methods and method not in self.vllm.methods:
            raise ConfigError(f"vLLM {self.vllm.version} has no method '{method}'")
        if any(key.startswith("suffix_") for key in exported.speculative) and not self.vllm.has_suffix:
            raise ConfigError(f"the environment of {self.vllm.python} has no arctic-inference, which vLLM needs for it")
        return exported

    def _flags(self, exported: Exported) -> list[str]:
        spec, config = self.target.spec, self.config
        own: dict[str, str | None] = {
            "dtype": config.dtype,
            "max-model-len": str(min(self.max_len + SLACK, spec.max_positions)),
            "max-num-seqs": str(max(config.batches)),
            "generation-config": "vllm",
            "seed": str(config.seed % 2**31),
            "no-enable-prefix-caching": None,
        }
        if not any("parallel-size" in flag for flag in config.serve):
            own |= self.vllm.flags  # for one process
        if exported.speculative:
            own["speculative-config"] = json.dumps({key: _plain(value) for key, value in exported.speculative.items()})
        return serve_flags(own | dict(exported.flags), config.serve)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
