"""`outrider tune`: find the method, the settings and the budget for a target, its prompts and its load."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from outrider.tuning.config import DeployEngine, TuneConfig

__all__ = ["Tune"]


@dataclass(frozen=True, kw_only=True)
class Tune(TuneConfig):
    """Find out which method, settings and budget to use for a target, or that drafting does not pay.

    The target answers the prompts once; every drafter is replayed along its answers, and the best few are measured side
    by side. The verdict goes to standard output, then tables, followed by one line of JSON unless that is a terminal.
    Give the same command again to resume an interrupted run.
    """

    target: tyro.conf.Positional[str] = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""
    engine: Annotated[DeployEngine, tyro.conf.arg(name="for")] = "outrider"
    """Engine that the result is for: outrider, vllm, sglang or llama.cpp; by default that of the --endpoint."""
    endpoints: Annotated[tuple[str, ...], tyro.conf.arg(name="endpoint")] = ()
    """A server of the target that already runs: its address up to and with /v1. With none=URL beside it, the same
    without speculation, what its drafts gain is measured."""

    def run(self) -> None:
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import console, end_with, progress
        from outrider.records.codec import dumps
        from outrider.tuning.outcome.table import print_tuned
        from outrider.tuning.tune import tuned

        directory: list[Path] = []

        def place() -> str:
            return f"; what is finished is in {directory[0]}, and the same command goes on there" if directory else ""

        with resumable(place), progress() as bar:
            report = tuned(self, started=directory.append, listen=lambda at: bar.show(*at))
        print_tuned(report, console(sys.stdout))
        end_with(dumps(report), f"Recipe: {report.recipe}; all records: {report.run}")
