"""Measuring servers that already run, with the benchmark's own runner, under a time limit.

    answers    every prompt once, as many at a time as the largest number of requests: the texts
    rounds     all cells, interleaved with plain decoding where a second server gives it, while there is time

One group of every cell is measured whatever the time. Units lie in the run's directory, so an interrupted run goes on.

Example: `measure(job, contenders, cells, end=monotonic() + 60)` returns every unit of the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from outrider.bench.cells import Cell, groups_of
from outrider.bench.contender import Contender, Name
from outrider.bench.runner import Runner
from outrider.bench.serving.contender import Reader, ServedContender
from outrider.bench.serving.service import Remote
from outrider.data.dialogue import Rules
from outrider.data.workloads import Conversation
from outrider.records.progress import Listener, Progress
from outrider.records.provenance import Manifest
from outrider.results.rows import PLAIN
from outrider.results.store import RunStore
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.tuning.config import TuneConfig
from outrider.tuning.endpoint.probe import Server
from outrider.tuning.prompts import capped

__all__ = ["ANSWERS", "NO_DRAFTS", "Job", "answers_cell", "contender_of", "measure"]

ANSWERS: Final = "answers"
ENGINE: Final = "endpoint"
STALL_S: Final = 120.0
NO_DRAFTS: Final[Mapping[str, Mapping[str, str]]] = {"outrider": {"outrider_method": PLAIN}}
"""Engine that can be asked not to draft -> fields of such a request."""


class _TimeIsUpError(Exception):
    """The time limit, raised between two units."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that all measurements of a run share.

    directory  the run's directory
    rules_of   function from a cell to the limits and seeds of answers
    """

    target: Target
    directory: Path
    manifest: Manifest
    rules_of: Callable[[Cell], Rules]
    listen: Listener


def contender_of(
    server: Server, method: str, reader: Reader, config: TuneConfig, *, drafts: bool = True
) -> ServedContender:
    """Return a server as a contender of the benchmark, under a method's name.

    Args:
        drafts: ask the server not to draft where this is False.
    """
    return ServedContender(
        Name(ENGINE, method),
        Remote(server.endpoint.url),
        reader,
        temperatures=(config.temperature,),
        stall_s=STALL_S,
        model=server.model,
        metrics=config.endpoint_metrics,
        extra={} if drafts else NO_DRAFTS[server.engine or ""],
    )


def answers_cell(conversations: Sequence[Conversation], most: int, temperature: float) -> Cell:
    """Return the cell in which all prompts are answered, at most so many at a time."""
    batch = min(most, len(conversations))
    return Cell(
        batch=batch,
        repeat=0,
        temperature=temperature,
        category=ANSWERS,
        groups=groups_of(conversations, batch),
        teaching=(),
        first=0,
    )


def measure(
    job: Job, contenders: Sequence[Contender], cells: Sequence[Cell], *, into: str, end: float
) -> list[UnitResult]:
    """Measure what is missing of some cells, and return all units that are kept.

    Args:
        into: name of the directory of these units.
        end: monotonic time after which no unit begins, but for the first group of every cell.
    """
    with RunStore(job.directory / into, job.manifest) as store:

        def run(part: Sequence[Cell], limit: float | None) -> None:
            def listen(at: Progress) -> None:
                if limit is not None and monotonic() > limit:
                    raise _TimeIsUpError
                job.listen(Progress(at.done, at.total, f"{into}: {at.words}"))

            Runner(
                target=job.target,
                contender_groups=[contenders],
                cells=part,
                rules_of=job.rules_of,
                verified=lambda temperature: False,
                store=store,
                listen=listen,
            ).run()

        try:
            run([capped(cell, 1) for cell in cells if cell.repeat == 0], None)
            run(cells, end)
        except _TimeIsUpError:
            pass
        return list(store.units.values())
