"""`outrider export`: write a trained proposer as a serving engine loads it, and print how to serve it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from outrider.cli.terminal import end_with
from outrider.records.display import visible, visible_line

__all__ = ["ExportCommand"]


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write a checkpoint in the layout of another engine, and print the command that serves it."""

    checkpoint: tyro.conf.Positional[str]
    """A trained or published head or draft model, or a method with a shipped head for the target, such as eagle3."""
    output: Path
    """The directory to write; it must be new or empty."""
    target: str = "smollm2-135m"
    """The target it was trained for."""
    to: Literal["vllm", "speculators", "sglang"] = "vllm"
    """vllm, speculators (vLLM's other layout, for EAGLE-3) or sglang."""
    num_nodes: int = 4
    """Draft tokens per step."""
    dtype: str = "bfloat16"
    """Dtype in which the target's weights are read."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""

    def run(self) -> None:
        from outrider.errors import ConfigError
        from outrider.export.exported import Export, export_checkpoint, export_into
        from outrider.proposers.method_spec import exported_checkpoint
        from outrider.targets import load_target

        if self.num_nodes < 1:
            raise ConfigError(f"num_nodes={self.num_nodes} must be at least 1")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            reason = "is not empty" if self.output.is_dir() else "is not a directory"
            raise ConfigError(f"{self.output} {reason}; choose another --output")
        # other engines load plain weights, so heads that share the target's get them as they are there
        target = load_target(
            self.target, dtype=self.dtype, weights="bf16", device="cpu", trust_remote_code=self.trust_remote_code
        )
        checkpoint = exported_checkpoint(self.checkpoint, target)
        output = self.output.resolve()
        export = Export(
            checkpoint=checkpoint,
            target=target,
            output=output,
            engine=self.to,
            num_nodes=self.num_nodes,
        )
        exported = export_into(output, lambda part: export_checkpoint(replace(export, output=part, served_from=output)))
        for note in exported.notes:
            print(visible_line(f"note: {note}"))
        print(visible(exported.command(export)))
        told = {"output": str(export.output), "speculative": {k: _plain(v) for k, v in exported.speculative.items()}}
        end_with(json.dumps(told), "")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
