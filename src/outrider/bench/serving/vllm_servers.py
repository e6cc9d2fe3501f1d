"""vLLM servers for a benchmark: one for plain decoding and one for each method.

A method that vLLM does not have is left out, and the report says so. A head that is not yet an export is exported into
the run's directory. What the user asks of the server, such as `tensor-parallel-size=2`, replaces our own flags.

Example: prompt lookup is served with `--speculative-config {"method": "ngram", ...}`.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from outrider.bench.contender import Name
from outrider.bench.notes import Notes
from outrider.bench.serving.contender import ServedContender
from outrider.bench.serving.flags import serve_flags
from outrider.bench.serving.starter import Starter
from outrider.errors import CheckpointError, ConfigError
from outrider.export.exported import Exported, served_name
from outrider.export.serving import Order, on_vllm
from outrider.proposers import configure, with_checkpoint
from outrider.proposers.method_spec import MethodSpec
from outrider.results.rows import PLAIN
from outrider.vllm.custom_drafters import import_path, on_custom_class
from outrider.vllm.environment import Vllm

__all__ = ["VllmServers"]


@final
@dataclass(frozen=True)
class VllmServers:
    """Makes the contenders of a run's methods on vLLM."""

    starter: Starter
    vllm: Vllm

    @property
    def description(self) -> str:
        """The engine, for readers of the results."""
        return f"vllm {self.vllm.version} ({'CPU build' if self.vllm.is_cpu else 'GPU build'})"

    def contenders(self, spec: MethodSpec, notes: Notes) -> list[ServedContender]:
        """Return the method on servers of its own: as vLLM has it, and with our code in it; a note where that fails.

        Plain decoding is always there: the others are compared with it.
        """
        starter, built = self.starter, list[tuple[str, Exported, dict[str, str]]]()
        if "vllm" in starter.config.engines or spec.name == PLAIN:
            excused = (ConfigError, *((CheckpointError,) if starter.is_optional(spec) else ()))
            with notes.leaving_out(spec.label, *excused):
                built.append((spec.label, self._built_in(spec), {}))
        if "vllm-custom" in starter.config.engines and spec.name != PLAIN:
            label, path = f"{spec.label} by outrider", str(import_path(starter.directory / "imports"))
            with notes.leaving_out(label, ConfigError):
                exported = self._checked(on_custom_class(spec.name, spec.settings, starter.target.spec))
                built.append((label, exported, {"PYTHONPATH": path}))
        return [self._contender(*one, notes) for one in built]

    def _contender(self, label: str, exported: Exported, variables: dict[str, str], notes: Notes) -> ServedContender:
        target = self.starter.target
        model, flags = served_name(target), self._flags(exported)
        notes.texts += [f"vllm {label}: {note}" for note in exported.notes]
        notes.texts.append(f"vllm {label}: {self.vllm.command(model, flags)}")
        return self.starter.contender(
            Name("vllm", label),
            lambda host, port: [*self.vllm.launcher, model, "--host", host, "--port", str(port), *flags],
            self.vllm.environment(os.environ, offline=target.spec.source is not None) | variables,
            label,
        )

    def _built_in(self, spec: MethodSpec) -> Exported:
        """Return the method as vLLM has it.

        Raises:
            ConfigError: if it has none that fits.
            CheckpointError: if there are no weights to export.
        """
        target = self.starter.target
        settings = with_checkpoint(spec.name, configure(spec.name, spec.settings), target)
        exported = on_vllm(spec.name, Order(config=settings, target=target, output=self.starter.exports(spec)))
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
        config = self.starter.config
        own: dict[str, str | None] = {
            "dtype": config.dtype,
            "max-model-len": str(self.starter.context),
            "max-num-seqs": str(max(config.batches)),
            "generation-config": "vllm",
            "seed": str(config.seed % 2**31),
            "no-enable-prefix-caching": None,
        }
        if not any("parallel-size" in flag for flag in config.serve):
            own |= self.vllm.flags  # for one process
        if self.vllm.is_cpu and max(config.temperatures) > 0:
            # of a prompt read in parts, vLLM 0.32 rewinds the request's generator, which the CPU's cannot do
            own["no-enable-chunked-prefill"] = None
        if exported.speculative:
            own["speculative-config"] = json.dumps({key: _plain(value) for key, value in exported.speculative.items()})
        return serve_flags(own | dict(exported.flags), config.serve)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
