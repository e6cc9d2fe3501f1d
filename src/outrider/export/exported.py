"""Exports of checkpoints for other engines.

vLLM reads a draft from the directory that `--speculative-config` names, SGLang from one that its flags name. An export
writes that directory, and returns how to serve it and which features the engine lacks.

Example: an EAGLE-3 head for Qwen2.5-7B, exported for vLLM with 5 drafted tokens, is served by

    vllm serve Qwen/Qwen2.5-7B-Instruct --speculative-config '{"method": ..., "model": "head/", ...}'
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from outrider.errors import CheckpointError, RunError, on_one_line
from outrider.records.files import replacing, replacing_directory
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = [
    "ENGINES",
    "MARKER",
    "Engine",
    "Export",
    "Exported",
    "export_checkpoint",
    "export_into",
    "served_name",
    "sglang_command",
    "sglang_flags",
    "vllm_command",
    "with_flags",
]

Engine = Literal["vllm", "speculators", "sglang"]
ENGINES: tuple[Engine, ...] = ("vllm", "speculators", "sglang")

EXPORTERS = ("dflash", "peagle", "eagle3", "medusa", "mtp", "pard", "draft_model")
"""Modules of this folder; the first that reads a config wins."""

MARKER = "serving.json"
"""The file of every export that is written last: the engine, and the fields of `Exported`."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export.

    checkpoint   a directory written by `outrider train`, or any published one that Outrider reads
    output       an existing, empty directory
    served_from  the final path of `output`; None if it stays in place
    engine       "vllm", "speculators" (vLLM's other layout: EAGLE-3, P-EAGLE and DFlash) or "sglang"
    num_nodes    tokens to draft per step
    """

    checkpoint: Path
    target: Target
    output: Path
    engine: Engine
    num_nodes: int
    served_from: Path | None = None

    @property
    def place(self) -> Path:
        """The path under which an engine loads the export."""
        return self.output if self.served_from is None else self.served_from

    def speculative(self, method: str) -> dict[str, Any]:
        """Return vLLM's speculative configuration with this method."""
        return {"method": method, "model": str(self.place), "num_speculative_tokens": self.num_nodes}

    def sglang_flags(self, algorithm: str) -> dict[str, Any]:
        """Return SGLang's flags for a drafted chain."""
        return sglang_flags(algorithm, self.place, self.num_nodes)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The way to serve an export.

    speculative   vLLM's speculative configuration, or SGLang's flags by name
    flags         further flags of vLLM's server, by name
    notes         differences of the engine from Outrider, a sentence each
    """

    speculative: Mapping[str, Any]
    flags: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def command(self, export: Export) -> str:
        """Return the command that serves the target with the export."""
        name = served_name(export.target)
        if export.engine == "sglang":
            return sglang_command(name, self.speculative)
        return vllm_command(name, self.speculative, self.flags)


def served_name(target: Target) -> str:
    """Return the model that an engine is told to serve: the target's directory, or its hub id."""
    directory = target.checkpoint()
    return target.spec.name if directory is None else str(directory)


def vllm_command(target: str, speculative: Mapping[str, Any], flags: Mapping[str, str]) -> str:
    """Return the command that serves a target on vLLM; without a configuration it decodes plainly."""
    config = {"speculative-config": json.dumps(dict(speculative))} if speculative else {}
    return with_flags(f"vllm serve {shlex.quote(target)}", {**config, **flags})


def sglang_command(target: str, flags: Mapping[str, Any]) -> str:
    """Return the command that serves a target on SGLang."""
    return with_flags(f"python -m sglang.launch_server --model-path {shlex.quote(target)}", flags)


def sglang_flags(
    algorithm: str, place: str | Path, num_steps: int, width: int = 1, num_nodes: int | None = None
) -> dict[str, Any]:
    """Return SGLang's flags for a chain, or for a dynamic tree of this width and number of nodes."""
    return {
        "speculative-algorithm": algorithm,
        "speculative-draft-model-path": place,
        "speculative-num-steps": num_steps,
        "speculative-eagle-topk": width,
        "speculative-num-draft-tokens": (num_nodes or num_steps) + 1,  # the root counts there
    }


def with_flags(command: str, flags: Mapping[str, Any]) -> str:
    """Return a shell command with flags, `--name value` each."""
    return " ".join([command, *(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())])


def export_into(output: Path, write: Callable[[Path], Exported]) -> Exported:
    """Let `write` fill a temporary directory, then rename it to `output`, which must be absent or empty.

    An export that fails leaves nothing; the next one replaces the remains of one that was killed.

    Raises:
        RunError: if the disk is full or the place cannot be written.
    """
    with _writing(output):
        if output.exists():
            output.rmdir()  # fails, as it should, where the directory holds anything
        with replacing_directory(output) as part:
            return write(part)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turn a failed write into an error that names the export."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        place = error.filename if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or on_one_line(str(error))
        if place is not None and not str(place).startswith((str(output), str(output.with_name(f".{output.name}.")))):
            raise CheckpointError(f"{place} cannot be read ({reason}); give a checkpoint that can be read") from error
        raise RunError(
            f"{output} cannot be written ({reason}); nothing was left there: free some space or choose another "
            "directory, then run the same command again"
        ) from error


def export_checkpoint(export: Export) -> Exported:
    """Write a checkpoint in the layout of an engine.

    Raises:
        CheckpointError: if it cannot be read, or does not belong to the target.
        ConfigError: if the engine cannot load such a checkpoint.
    """
    config = read_json(export.checkpoint / "config.json")
    for name in EXPORTERS:
        module = import_module(f"outrider.export.{name}")
        reads: Callable[[Mapping[str, Any]], bool] = module.reads
        if reads(config):
            write: Callable[[Export], Exported] = module.write
            exported = write(export)
            with replacing(export.output / MARKER) as part:
                part.write_text(_marker(export, exported), encoding="utf-8")
            return exported
    raise CheckpointError(
        f"{export.checkpoint} is none of the checkpoints that can be exported: an EAGLE-3, DFlash, Medusa or MTP head, "
        "or a draft model"
    )


def _marker(export: Export, exported: Exported) -> str:
    speculative = {key: str(value) if isinstance(value, Path) else value for key, value in exported.speculative.items()}
    content = {
        "engine": export.engine,
        "speculative": speculative,
        "flags": dict(exported.flags),
        "notes": list(exported.notes),
    }
    return json.dumps(content, indent=2) + "\n"
