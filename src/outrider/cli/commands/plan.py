"""`outrider plan`: predict speedups from costs and acceptance, and check predictions against a run."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from outrider.planning.config import PlanRequest

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict the speedup of methods by batch size and number of nodes, before anything runs.

    Costs come from `outrider profile` (--costs) or from a data sheet (--hardware and --model). Acceptance comes from
    numbers (--acceptance) or from a finished run (--run). Tables go to standard output, followed by one line of JSON
    unless that is a terminal. With --check, a finished run is predicted row by row instead, and compared with its
    measurements.
    """

    request: Annotated[PlanRequest, tyro.conf.arg(name="")]
    check: Path | None = None
    """A finished run, or its report.json, to compare predictions with."""

    def run(self) -> None:
        from outrider.cli.terminal import console, end_with
        from outrider.planning.planner import checked, planned
        from outrider.planning.tables import print_outlook
        from outrider.records.codec import dumps

        outlook = planned(self.request) if self.check is None else checked(self.request, self.check)
        print_outlook(outlook, console(sys.stdout))
        end_with(dumps(outlook), "")
