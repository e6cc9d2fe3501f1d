"""The sections of a page, in their order. Each is a function of a run that returns None where the run has no such data.

Example: `[section.name for section in sections_of(source)]` begins with "speed" for a benchmark.
"""

from collections.abc import Callable, Sequence
from typing import Final

from outrider.report.origin import origin
from outrider.report.parts import Section
from outrider.report.sources import Source
from outrider.report.speed import losing, side_by_side, speed

__all__ = ["sections_of", "shared_sections"]

SECTIONS: Final[tuple[Callable[[Source], Section | None], ...]] = (speed, side_by_side, losing, origin)


def sections_of(source: Source) -> list[Section]:
    """Return the sections of a run."""
    return [section for make in SECTIONS if (section := make(source)) is not None]


def shared_sections(sources: Sequence[Source]) -> list[Section]:
    """Return the sections that compare runs with one another."""
    return []
