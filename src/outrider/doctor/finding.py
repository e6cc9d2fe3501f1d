"""A finding: one check, how it went, the evidence in numbers, and the remedy.

    ok        nothing to do
    warn      worth knowing; it may cost speed
    problem   something is wrong; the exit status of the command says so

Example: `Finding("memory", "warn", "0.4 of 16 GB free", "end other programs")` is shown in yellow.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["LEVELS", "Finding", "Level", "is_sound", "ordered"]

Level = Literal["ok", "warn", "problem"]
LEVELS: tuple[Level, ...] = ("problem", "warn", "ok")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    check     name of the check
    evidence  observation, in numbers
    remedy    action to take; empty where there is none
    """

    check: str
    level: Level
    evidence: str
    remedy: str = ""


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return the same findings, problems first; within a level the order stays."""
    return sorted(findings, key=lambda one: LEVELS.index(one.level))


def is_sound(findings: Iterable[Finding]) -> bool:
    """Return whether none is a problem."""
    return all(one.level != "problem" for one in findings)
