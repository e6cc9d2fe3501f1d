"""The sections of a page, in their order. Each is a function of a run that returns None where the run has no such data.

Example: `[section.name for section in sections_of(source)]` begins with "speed" for a benchmark.
"""

from collections.abc import Callable, Sequence
from typing import Final

from outrider.report.cost import memory, predicted, step_time, waterfall
from outrider.report.latency import latency
from outrider.report.load import acceptance, batches
from outrider.report.origin import origin
from outrider.report.others import missing, quality, ribbon, runs_side_by_side, tuned
from outrider.report.parts import Section
from outrider.report.sources import Source
from outrider.report.speed import losing, side_by_side, speed

__all__ = ["sections_of", "shared_sections"]

SECTIONS: Final[tuple[Callable[[Source], Section | None], ...]] = (
    tuned,
    quality,
    speed,
    ribbon,
    waterfall,
    acceptance,
    step_time,
    batches,
    side_by_side,
    predicted,
    latency,
    memory,
    losing,
)


def sections_of(source: Source) -> list[Section]:
    """Return the sections of a run."""
    found = [section for make in SECTIONS if (section := make(source)) is not None]
    lacking = missing(source, [section.name for section in found])
    return [*found, *([lacking] if lacking else []), origin(source)]


def shared_sections(sources: Sequence[Source]) -> list[Section]:
    """Return the sections that compare runs with one another."""
    shared = runs_side_by_side(sources)
    return [shared] if shared else []
