"""What an export is, and which engines it can be for.

vLLM reads a draft from a directory that `--speculative-config` names; SGLang from one that its flags name. An export
writes that directory, and says how to serve it and what the engine will not do with it.

Example: an EAGLE-3 head for Qwen2.5-7B, exported for vLLM with 5 drafted tokens, is served by

    vllm serve Qwen/Qwen2.5-7B-Instruct --speculative-config '{"method": ..., "model": "head/", ...}'
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from outrider.errors import CheckpointError
from outrider.formats.store import read_json, replace_file
from outrider.target import Target

__all__ = ["ENGINES", "MARKER", "Engine", "Export", "Exported", "export_checkpoint", "served_name"]

Engine = Literal["vllm", "speculators", "sglang"]
ENGINES: tuple[Engine, ...] = ("vllm", "speculators", "sglang")

EXPORTERS = ("eagle3", "medusa", "mtp", "pard", "draft_model")  # modules beside this one, asked in this order

MARKER = "serving.json"
"""A file of every export, written last: the engine, and what `Exported` holds."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to export.

    checkpoint   a directory written by `outrider train`, or any published one that Outrider reads
    output       an existing, empty directory
    engine       "vllm", "speculators" (vLLM's other layout, EAGLE-3 only) or "sglang"
    num_nodes    tokens that the engine shall draft per step
    """

    checkpoint: Path
    target: Target
    output: Path
    engine: Engine
    num_nodes: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How to serve what was written.

    speculative   vLLM's speculative configuration, or SGLang's flags by name
    flags         what else vLLM's server must be told, by name
    notes         what the engine does otherwise than Outrider, a sentence each
    """

    speculative: Mapping[str, Any]
    flags: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def command(self, export: Export) -> str:
        """The command that serves the target with the export."""
        name = served_name(export.target)
        if export.engine == "sglang":
            flags = [f"--{key} {shlex.quote(str(value))}" for key, value in self.speculative.items()]
            return " ".join([f"python -m sglang.launch_server --model-path {shlex.quote(name)}", *flags])
        config = json.dumps(dict(self.speculative))
        others = [f"--{key} {shlex.quote(value)}" for key, value in self.flags.items()]
        return " ".join([f"vllm serve {shlex.quote(name)} --speculative-config {shlex.quote(config)}", *others])


def served_name(target: Target) -> str:
    """What an engine is told to serve: the target's directory, or its hub id."""
    return target.spec.directory or target.spec.name


def export_checkpoint(export: Export) -> Exported:
    """Write a checkpoint as an engine loads it.

    Raises:
        CheckpointError: if it cannot be read, or does not belong to the target.
        ConfigError: if the engine has no place for it.
    """
    config = read_json(export.checkpoint / "config.json")
    for name in EXPORTERS:
        module = import_module(f"outrider.interop.{name}")
        reads: Callable[[Mapping[str, Any]], bool] = module.reads
        if reads(config):
            write: Callable[[Export], Exported] = module.write
            exported = write(export)
            replace_file(export.output / MARKER, _marker(export, exported))
            return exported
    raise CheckpointError(
        f"{export.checkpoint} is none of the checkpoints that can be exported: an EAGLE-3, Medusa or MTP head, or a "
        "draft model"
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
