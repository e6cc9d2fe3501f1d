"""A finished benchmark run as evidence: how often guesses were right there, and at what sizes its steps were made.

Of a row of the report,

    ranks      its conditional acceptance by depth
    coverage   its share of steps with a draft
    width      its mean nodes per draft, (mean_acceptance_length - 1) / acceptance rate, over its deepest level

Nothing here reads a time of the run, so a prediction from it can be held against the measured speedup.

Worked example: acceptance_per_pos (0.5, 0.25), mean_acceptance_length 1.75, draft_acceptance_rate 0.375: two nodes per
draft over two levels, a chain that fills its limit.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.errors import ConfigError, RunError, nearest, on_one_line
from outrider.planning.acceptance_profile import AcceptanceProfile, DraftShape
from outrider.planning.drafters import WARM
from outrider.results.kept import read_units
from outrider.results.rows import PLAIN, Report, Row, from_json
from outrider.results.store import REPORT, UNITS
from outrider.results.unit import UnitResult

__all__ = [
    "Evidence",
    "acceptance_of",
    "chosen_rows",
    "drafted_rows",
    "label_of",
    "mean_context",
    "mean_nodes",
    "occupancy",
    "read_run",
    "shape_of",
]


LARGEST = 10_000
"""No run accepts so many tokens in a step, or is so many times faster."""


@dataclass(frozen=True)
class Evidence:
    """A run: its rows, and its units where they were kept beside the report."""

    report: Report
    units: tuple[UnitResult, ...]


def read_run(path: Path) -> Evidence:
    """Read a run's directory, or a report alone.

    Raises:
        RunError: if there is no finished run, or a file is damaged.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        report = from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{file} does not exist; give the directory of a finished `outrider bench` run") from None
    except (OSError, ValueError, RunError) as error:
        reason = on_one_line(str(error))
        raise RunError(f"{file} cannot be read ({reason}); give the directory of a finished run") from error
    for place, row in enumerate(report.rows):
        if flaw := _flaw_of(row):
            raise RunError(f"{file}: rows[{place}] has a {flaw} that cannot be; give the directory of another run")
    return Evidence(report, tuple(one.unit for one in read_units(path / UNITS).values()) if path.is_dir() else ())


def _flaw_of(row: Row) -> str | None:
    """Return the field of a row with a number that no run gives; None if there is none."""
    shares = (*(row.acceptance_per_pos or ()), *(row.conditional_acceptance_per_pos or ()))
    rates = [one for one in (row.draft_coverage, row.draft_acceptance_rate, row.node_efficiency) if one is not None]
    fits = {
        "batch": row.batch >= 1,
        "temperature": row.temperature >= 0,
        "tau": row.tau is None or 0 < row.tau <= LARGEST,
        "speedup": row.speedup is None or 1 / LARGEST <= row.speedup.point <= LARGEST,
        "mean_acceptance_length": row.mean_acceptance_length is None or 1 <= row.mean_acceptance_length <= LARGEST,
        "share": all(0 <= share <= 1 for share in (*shares, *rates)),
        "depth": len(shares) <= LARGEST,
    }
    return next((name for name, holds in fits.items() if not holds), None)


def drafted_rows(report: Report) -> list[Row]:
    """Return the rows of our own engine that drafted something."""
    return [row for row in report.rows if row.engine == "outrider" and row.method != PLAIN and row.acceptance_per_pos]


def label_of(row: Row) -> str:
    """Return the method's name, and whether it had learnt before."""
    return row.method + ("" if row.state == "cold" else WARM)


def mean_nodes(row: Row) -> float:
    """Return the nodes of an average draft; as many as there are levels where nothing was ever accepted."""
    rate = row.draft_acceptance_rate if row.draft_acceptance_rate is not None else row.node_efficiency
    accepted = (row.mean_acceptance_length or 1.0) - 1
    return accepted / rate if rate else float(len(row.acceptance_per_pos or ()))


def shape_of(row: Row) -> DraftShape:
    """Return the row's average draft."""
    reached = row.acceptance_per_pos or ()
    return DraftShape(
        num_nodes=mean_nodes(row), depth=len(reached), coverage=row.draft_coverage or 0.0, reached=tuple(reached)
    )


def acceptance_of(row: Row) -> AcceptanceProfile:
    """Return what other settings of the method may expect."""
    shape = shape_of(row)
    return AcceptanceProfile.chain(
        row.conditional_acceptance_per_pos or (0.0,), coverage=shape.coverage, width=shape.num_nodes / shape.depth
    )


def chosen_rows(report: Report, category: str, temperature: float) -> list[Row]:
    """Return one row per method: of that category and temperature, at the smallest batch.

    Raises:
        ConfigError: if the run has none; names what it has.
    """
    rows = drafted_rows(report)
    if not rows:
        raise ConfigError(f"{report.run or 'the run'} measured no method that drafts; give another --run")
    only = {row.category for row in rows}
    wanted = next(iter(only)) if len(only) == 1 and category == "all" else category
    if wanted not in only:
        raise ConfigError(f"the run has no category '{category}'{nearest(category, only)}")
    found = [row for row in rows if row.category == wanted and row.temperature == temperature]
    if not found:
        known = ", ".join(f"{value:g}" for value in sorted({row.temperature for row in rows}))
        raise ConfigError(f"the run has no rows at temperature {temperature:g}; it has {known}")
    smallest = {label_of(row): row for row in sorted(found, key=lambda row: -row.batch)}
    return [smallest[label] for label in dict.fromkeys(map(label_of, found))]


def occupancy(units: Sequence[UnitResult], batch: int) -> dict[int, float]:
    """Return how many slots were running, each number with its share of all tokens; all of them if the steps are not
    known."""
    steps = [len(step.slots) for unit in units for step in unit.steps]
    return {slots: slots * count / sum(steps) for slots, count in Counter(steps).items()} if steps else {batch: 1.0}


def mean_context(units: Sequence[UnitResult], default: float) -> float:
    """Return the committed tokens per slot, over all steps of these units."""
    lengths = [slot.context_length for unit in units for step in unit.steps for slot in step.slots]
    return sum(lengths) / len(lengths) if lengths else default
