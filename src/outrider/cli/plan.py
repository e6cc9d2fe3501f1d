"""`outrider plan`: predict speedups from costs and acceptance, and check predictions against a run."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from outrider.planning.outlook import Outlook

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict the speedup of methods by batch size and number of nodes, before anything runs.

    Costs come from `outrider profile` (--costs) or from a data sheet (--hardware and --model), acceptance from numbers
    (--acceptance) or from a finished run (--run). Tables go to standard output, ended by one line of JSON where that is
    not a terminal. With --check, a finished run is predicted row by row instead, and compared with what was measured.
    """

    costs: Path | None = None
    """A file that `outrider profile` wrote."""
    hardware: str | None = None
    """A machine from recipes/hardware/ (h100, h200, a100, l4, cpu-2core, cpu-2core-avx512), or a TOML file."""
    model: str = "smollm2-135m"
    """With --hardware: the target, by sizes alone: a directory, a config.json, a hub id, smollm2-135m, qwen2.5-7b."""
    bytes_per_weight: float = 2.0
    """With --hardware: 2 is bf16, 0.5 is 4 bits."""
    drafters: str = "published"
    """With --hardware: sizes of the drafters, from recipes/drafters/ or a TOML file."""
    acceptance: tuple[str, ...] = ()
    """0.8 or 0.8,0.6,0.5 by depth; ranks 0.7/0.1,0.6/0.1; coverage 0.8@0.4; of one method eagle3=0.8,0.6."""
    evidence: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """A finished `outrider bench` run: acceptance, coverage and context as measured there."""
    category: str = "all"
    """Of that run."""
    check: Path | None = None
    """A finished run, or its report.json, to hold predictions against."""
    methods: tuple[str, ...] = ()
    """By default all that have costs and acceptance. With --hardware, draft_model:model=NAME names a draft model."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Batch sizes."""
    nodes: tuple[str, ...] = ("0..8",)
    """Numbers of nodes to choose from."""
    context: float | None = None
    """Committed tokens per slot; by default the run's own, or 512."""
    temperature: float = 0.0
    """0 is greedy."""
    tokens: int | None = None
    """Length of each answer; without it, the loss at an answer's end is left out."""

    def run(self) -> None:
        from outrider.cli.terminal import console, end_with
        from outrider.planning.tables import print_outlook
        from outrider.records.codec import dumps

        outlook = self._outlook()
        print_outlook(outlook, console(sys.stdout))
        end_with(dumps(outlook), "")

    def _outlook(self) -> "Outlook":
        from outrider.planning.planner import PlanRequest, checked, planned

        request = PlanRequest(
            **{field.name: getattr(self, field.name) for field in fields(self) if field.name != "check"}
        )
        return planned(request) if self.check is None else checked(request, self.check)
