"""The result of `outrider quality` as a record: written as one line of JSON, read again by the docs.

Example: `read_report(dumps(report))` equals `report`.
"""

from dataclasses import dataclass
from typing import Final

from outrider.errors import RunError, on_one_line
from outrider.quality.compare import Quality
from outrider.records.codec import loads
from outrider.records.provenance import Manifest

__all__ = ["SCHEMA", "Line", "Model", "Report", "read_report"]

SCHEMA: Final = "outrider.quality/1"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model.

    name           the name that the user gave
    weights        kinds of its matrices, those with the most numbers first: "Q4_1, Q8_0"
    weight_bytes   memory of its weights
    """

    name: str
    weights: str
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """One candidate.

    label     kind of weights that was asked for, or the file's name
    prompts   figures over prompts
    answers   figures over the reference's answers
    """

    label: str
    model: Model
    prompts: Quality
    answers: Quality


@dataclass(frozen=True, kw_only=True)
class Report:
    """All candidates against one reference."""

    schema: str = SCHEMA
    reference: Model
    lines: tuple[Line, ...]
    manifest: Manifest


def read_report(text: str) -> Report:
    """Parse a report.

    Raises:
        RunError: if it is damaged or of another version.
    """
    report = loads(Report, text)
    if report.schema != SCHEMA:
        raise RunError(f"its schema is '{on_one_line(report.schema)}', not '{SCHEMA}'")
    return report
