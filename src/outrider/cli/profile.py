"""`outrider profile`: measure what steps cost on this machine."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProfileCommand"]


@dataclass(frozen=True, kw_only=True)
class ProfileCommand:
    """Measure what forwards and drafts cost on this machine, and keep it for budgets and plans.

    An interrupted profile is resumed by the same command. Tables go to standard output, ended by one line
    of JSON where that is not a terminal; the numbers are kept where engines look for them, or in --output.
    """

    target: str = "smollm2-135m"
    """A directory, a GGUF file, a hub id, or smollm2-135m."""
    dtype: str = "bfloat16"
    """Of the weights: bfloat16, float16, float32, float64."""
    device: str | None = None
    """cpu, cuda, ...; by default the GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""
    methods: tuple[str, ...] = ()
    """Also what these methods' drafts cost: ngram eagle3:checkpoint=DIR."""
    batches: tuple[int, ...] = ()
    """Batch sizes; by default 1 2 4 8."""
    rows: tuple[int, ...] = ()
    """Rows of each slot: the root and the nodes; by default up to 32."""
    contexts: tuple[int, ...] = ()
    """Committed tokens of each slot; by default up to 2048."""
    repeats: int | None = None
    """Timings of each point, of which the median counts; by default 9."""
    output: Path | None = None
    """The file; by default one in the user's cache, by machine, target's shape, dtype and threads."""
    quick: bool = False
    """Fewer points and 3 repeats, where none are given."""

    def run(self) -> None:
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import console, end_with, progress
        from outrider.profiling.profile import ProfileConfig, profile
        from outrider.profiling.table import print_profile

        config = ProfileConfig(
            target=self.target,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            methods=self.methods,
            batches=self.batches,
            rows=self.rows,
            contexts=self.contexts,
            repeats=self.repeats,
            output=self.output,
            quick=self.quick,
        )
        unfinished: list[Path] = []

        def place() -> str:
            return f"; finished points are in {unfinished[0]}, and the same command goes on" if unfinished else ""

        with resumable(place), progress() as bar:
            found = profile(
                config, lambda at: bar.show(at.num_done + at.part, at.num_groups, at.group), unfinished.append
            )
        print_profile(found.file, console(sys.stdout))
        end_with(
            json.dumps({**found.file.to_plain(), "output": str(found.path)}, allow_nan=False),
            f"All numbers: {found.path}",
        )
