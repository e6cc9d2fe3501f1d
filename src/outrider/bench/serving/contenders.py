"""The serving contenders of a benchmark, from its settings.

    engines = ["vllm"]            a server of our own for plain decoding and for each method, one after the other, or
                                  all at the same time and in turns (`together`)
    engines = ["vllm-custom"]     the same, but vLLM drafts with our own code (`outrider.vllm.custom_class`)
    endpoints = ["a=URL", "URL"]  servers that already run; what stands before "=" is what the row is called

A method that vLLM does not have is left out, and the report says so. A head that is not yet an export is exported into
the run's directory. What the user asks of the server, such as `tensor-parallel-size=2`, replaces our own flags.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, final

from outrider.bench.config import BenchConfig
from outrider.bench.contender import Contender, Name
from outrider.bench.notes import Notes
from outrider.bench.serving.contender import Reader, ServedContender
from outrider.bench.serving.endpoint import endpoint_of
from outrider.bench.serving.service import Launched, Remote
from outrider.errors import CheckpointError, ConfigError
from outrider.export.exported import Exported, served_name
from outrider.export.serving import Order, on_vllm
from outrider.proposers import configure, known_method, with_checkpoint
from outrider.proposers.method_spec import MethodSpec
from outrider.results.rows import PLAIN
from outrider.target import Target
from outrider.vllm.custom_drafters import import_path, on_custom_class
from outrider.vllm.environment import Vllm

__all__ = ["ServingContenders", "serve_flags", "serving_contenders"]

SLACK = 64
"""Positions behind the longest text, so that drafts at its end need not be cut."""


class ServingContenders(NamedTuple):
    """Contenders that are open at the same time, one group after another, and what a reader must know of them."""

    contender_groups: list[list[Contender]]
    notes: list[str]


def serving_contenders(
    config: BenchConfig,
    methods: Sequence[MethodSpec],
    target: Target,
    warm_up: Sequence[int],
    max_len: int,
    directory: Path,
    tell: Callable[[str], None],
    vllm: Vllm | None,
) -> ServingContenders:
    """Return the serving contenders of a run.

    Args:
        max_len: tokens of the longest text.
        directory: the run's directory, for exports and logs.
        tell: called with what takes long.
        vllm: its environment, if it takes part.

    Raises:
        CheckpointError: if a checkpoint cannot be exported.
    """
    groups: list[list[Contender]] = []
    notes, spec = Notes(), target.spec
    reader = Reader(
        tokenizer=target.tokenizer, vocab_size=spec.vocab_size, eos_ids=spec.eos_ids, warm_up=tuple(warm_up)
    )
    if vllm is not None:
        servers = _Servers(config, target, reader, max_len, directory, tell, vllm)
        found = [one for spec in methods for one in servers.contenders(spec, notes)]
        groups += [list(found)] if config.together else [[one] for one in found]
        kind = "CPU build" if vllm.is_cpu else "GPU build"
        order = "in turns, all servers at once" if config.together else "one server after the other, not interleaved"
        notes.texts.append(f"vllm {vllm.version} ({kind}), {order}")
    groups += [[_remote(config, text, reader)] for text in config.endpoints]
    return ServingContenders(groups, notes.texts)


@final
@dataclass(frozen=True)
class _Servers:
    config: BenchConfig
    target: Target
    reader: Reader
    max_len: int
    directory: Path
    tell: Callable[[str], None]
    vllm: Vllm

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
            log=self.directory / "servers" / f"{_file_name(label)}.log",
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
        output = (self.directory / "exports" / _file_name(spec.label)).resolve()
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


def serve_flags(own: Mapping[str, str | None], given: Sequence[str]) -> list[str]:
    """Return the flags of a server: ours, and those given as `name=value` or `name`, which replace ours of the same
    name.

    >>> serve_flags({"dtype": "bfloat16", "no-cache": None}, ["cache", "dtype=float32"])
    ['--cache', '--dtype', 'float32']
    """
    flags = dict(own)
    for text in given:
        name, equals, value = text.removeprefix("--").partition("=")
        name = name.strip().replace("_", "-")
        if not name:
            raise ConfigError(f"'{text}' is no flag of a server; write name=value or name")
        for other in (name, f"no-{name}", name.removeprefix("no-")):
            flags.pop(other, None)
        flags[name] = value if equals else None
    return [
        part for name, value in flags.items() for part in ([f"--{name}"] if value is None else [f"--{name}", value])
    ]


def _remote(config: BenchConfig, text: str, reader: Reader) -> ServedContender:
    endpoint = endpoint_of(text)
    return ServedContender(
        Name("endpoint", endpoint.label),
        Remote(endpoint.url),
        reader,
        temperatures=config.temperatures,
        stall_s=config.stall_timeout,
        model=config.endpoint_model,
        metrics=config.endpoint_metrics,
    )


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _file_name(label: str) -> str:
    """Return a name that no other label of a run has."""
    clean = "".join(char if char.isalnum() or char in "-_." else "-" for char in label)
    return clean if clean == label and len(label) < 80 else f"{clean[:60]}-{sha256(label.encode()).hexdigest()[:8]}"
