"""`outrider profile`: measure what steps cost on this machine."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from outrider.profiling.config import ProfileConfig

__all__ = ["ProfileCommand"]


@dataclass(frozen=True, kw_only=True)
class ProfileCommand(ProfileConfig):
    """Measure what forwards and drafts cost on this machine, and keep it for budgets and plans.

    Give the same command again to resume an interrupted profile. Tables go to standard output, followed by one line of
    JSON unless that is a terminal; the numbers are kept where engines look for them, or in --output.
    """

    def run(self) -> None:
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import console, end_with, progress
        from outrider.profiling.profile import profile
        from outrider.profiling.table import print_profile

        unfinished: list[Path] = []

        def place() -> str:
            return f"; finished points are in {unfinished[0]}, and the same command goes on" if unfinished else ""

        with resumable(place), progress() as bar:
            found = profile(self, lambda at: bar.show(*at), unfinished.append)
        print_profile(found.file, console(sys.stdout))
        end_with(
            json.dumps({**found.file.to_plain(), "output": str(found.path)}, allow_nan=False),
            f"All numbers: {found.path}",
        )
