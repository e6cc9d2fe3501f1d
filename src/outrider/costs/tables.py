"""The cost of a step on this machine, in seconds: the numbers by which a budget and a plan decide.

A step with B slots and R real rows (roots and nodes of all slots together) costs

    propose(B, R - B) + forward(B, R, context) + accept(B, J) + rest(B)

where the acceptance rule reads J rows: the roots and the accepted nodes.

A forward of a few rows reads every weight once and costs about as much as one row. Where arithmetic or attention
dominates, it grows; how fast depends on machine, target, dtype and threads. So it is measured
(`outrider.costs.calibrate`, `outrider profile`) on a grid of slots x rows per slot x context, and interpolated linearly
(`outrider.costs.grid`). Nothing in this file takes time itself.

Worked example: rows per slot 1 and 8 measured as 10 ms and 17 ms with one slot. A draft of three nodes is a forward of
four rows: 13 ms. It pays off if it brings more than 1.3 tokens on average, the cost of drafting left aside.

A `CostFile` keeps the tables of one machine and target as JSON, schema "outrider.costs/1".
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Final, Self, final

import numpy as np

from outrider.costs.grid import Grid
from outrider.costs.identity import Identity
from outrider.errors import RunError
from outrider.records.files import write_text, writing

__all__ = [
    "COSTS_SCHEMA",
    "STEADY",
    "CostFile",
    "DraftCosts",
    "MeasuredCosts",
    "MeasuredDraftCosts",
    "TargetCosts",
    "joined_draft_costs",
    "typical_costs",
    "write_costs",
]

COSTS_SCHEMA: Final = "outrider.costs/1"


class TargetCosts(ABC):
    """Seconds of the target and of the loop around it."""

    @abstractmethod
    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        """Return the seconds of one target forward.

        Args:
            num_rows: real rows of all slots together, at least `num_slots`; a mean may be fractional.
            context: committed tokens of the slot of a row, on average over the rows.
        """

    @abstractmethod
    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        """Return the seconds of the acceptance rule.

        Args:
            num_rows: rows that the rule reads, of all slots together: one per slot and one per accepted node. (On a GPU
                all rows are read at once, in little time; tables are measured on drafts that are right to the end,
                where both counts are equal.)
            greedy: temperature 0.
        """

    @abstractmethod
    def rest_s(self, num_slots: int) -> float:
        """Return the seconds of the commit and of the host's work in a step."""


class DraftCosts(ABC):
    """Seconds of one method in a step."""

    @abstractmethod
    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        """Return the seconds of proposing, and of observing the commits.

        Args:
            num_nodes: nodes of all slots together, like the rows of a forward; 0 is observing alone.
            depth: depth of the deepest node.
        """

    def pending_s(self, num_pending: int) -> float:
        """Return the seconds that reading this many pending tokens adds; 0 for a method without a cache of its own."""
        return 0.0


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredCosts(TargetCosts):
    """Tables over slots, rows per slot and, for the forward, committed tokens per slot.

    A table with a single number of slots is read by the rows of all slots together.
    """

    forward: Grid
    accept_greedy: Grid
    accept_sampled: Grid
    rest: Grid

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        return self.forward(num_slots, _per_slot(self.forward, num_slots, num_rows), context)

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        grid = self.accept_greedy if greedy else self.accept_sampled
        return grid(num_slots, _per_slot(grid, num_slots, num_rows))

    def rest_s(self, num_slots: int) -> float:
        return self.rest(num_slots)

    def to_plain(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_plain() for name in TARGET_AXES}

    @classmethod
    def from_plain(cls, value: Any) -> Self:
        """Return the tables that a file holds.

        Raises:
            RunError: naming the table that is missing or damaged.
        """
        grids = _grids(TARGET_AXES, value, "target")
        if not grids["forward"].measured.min() > 0:
            raise RunError("target.forward has a forward that takes no time")
        return cls(**grids)


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredDraftCosts(DraftCosts):
    """A table over slots and nodes per slot.

    It was measured on drafts of the method's own shape, where the depth follows from the nodes; `depth` is not used.

    read_s    seconds of reading one pending token
    """

    propose: Grid
    read_s: float = 0.0

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return self.propose(num_slots, _per_slot(self.propose, num_slots, num_nodes))

    def pending_s(self, num_pending: int) -> float:
        return num_pending * self.read_s

    def to_plain(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_plain() for name in DRAFT_AXES} | {"read_s": self.read_s}

    @classmethod
    def from_plain(cls, value: Any, where: str) -> Self:
        """Return the table that a file holds.

        Raises:
            RunError: naming the table that is missing or damaged.
        """
        read_s = value.get("read_s", 0.0) if isinstance(value, dict) else 0.0
        if not isinstance(read_s, int | float) or not 0 <= read_s < inf:
            raise RunError(f"{where}.read_s={read_s!r} must be seconds")
        return cls(**_grids(DRAFT_AXES, value, where), read_s=float(read_s))


def typical_costs(sweeps: Sequence[MeasuredCosts]) -> MeasuredCosts:
    """Return the lower quartile of several measurements of one grid, point by point: a disturbance only slows."""
    grids = {name: [getattr(sweep, name) for sweep in sweeps] for name in TARGET_AXES}
    return MeasuredCosts(**{name: Grid.quantile(some, 0.25) for name, some in grids.items()})


def spread(sweeps: Sequence[MeasuredCosts]) -> float:
    """Return the share by which the slowest sweep of a forward exceeds the fastest, as the median over all points.

    On an idle machine it is a few hundredths.
    """
    forwards = np.array([sweep.forward.measured for sweep in sweeps])
    return float(np.median(forwards.max(axis=0) / forwards.min(axis=0))) - 1


def joined_draft_costs(parts: Sequence[MeasuredDraftCosts]) -> MeasuredDraftCosts:
    """Join tables that were measured with different numbers of slots."""
    return MeasuredDraftCosts(
        propose=Grid.joined([part.propose for part in parts]), read_s=median(part.read_s for part in parts)
    )


STEADY: Final = 0.1
"""Sweeps of a quiet machine are less than this share apart."""

TARGET_AXES: Final[Mapping[str, tuple[str, ...]]] = {
    "forward": ("slots", "rows_per_slot", "contexts"),
    "accept_greedy": ("slots", "rows_per_slot"),
    "accept_sampled": ("slots", "rows_per_slot"),
    "rest": ("slots",),
}
DRAFT_AXES: Final[Mapping[str, tuple[str, ...]]] = {"propose": ("slots", "nodes_per_slot")}


def _per_slot(grid: Grid, num_slots: int, count: float) -> float:
    """Return `count` of all slots as a number per slot; with one number of slots measured, per one of those."""
    measured = grid.axes["slots"]
    return count / (num_slots if len(measured) > 1 else measured[0])


def _grids(axes: Mapping[str, tuple[str, ...]], value: Any, where: str) -> dict[str, Grid]:
    if not isinstance(value, dict):
        raise RunError(f"'{where}' is not a set of tables")
    return {name: Grid.from_plain(names, value.get(name), f"{where}.{name}") for name, names in axes.items()}


@dataclass(frozen=True, kw_only=True)
class CostFile:
    """Everything measured on one machine with one target.

    drafts   tables by the label of the method
    facts    further numbers for the reader: memory bandwidth, versions, date
    """

    identity: Identity
    target: MeasuredCosts
    drafts: Mapping[str, MeasuredDraftCosts] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spread(self) -> float | None:
        """Spread of the sweeps, as a share, or None if not on file; above `STEADY` something disturbed them."""
        value = self.facts.get("spread")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
            return None
        return float(value)

    def to_plain(self) -> dict[str, Any]:
        return {
            "schema": COSTS_SCHEMA,
            "identity": asdict(self.identity),
            "facts": dict(self.facts),
            "target": self.target.to_plain(),
            "drafts": {label: costs.to_plain() for label, costs in self.drafts.items()},
        }

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            RunError: if it cannot be written.
        """
        write_costs(path, json.dumps(self.to_plain(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of costs.

        Raises:
            RunError: if the file is missing, damaged, or something else.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}); `outrider profile` writes one") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
            raise RunError(f"{path} is not a file of costs; `outrider profile` writes one") from error
        if not isinstance(value, dict) or value.get("schema") != COSTS_SCHEMA:
            raise RunError(f"{path} is not a file of costs with schema {COSTS_SCHEMA}; `outrider profile` writes one")
        try:
            return cls._from_plain(value)
        except RunError as error:
            raise RunError(f"{path} is damaged: {error}; measure again with `outrider profile`") from error

    @classmethod
    def _from_plain(cls, value: dict[str, Any]) -> Self:
        drafts, facts = value.get("drafts", {}), value.get("facts", {})
        if not isinstance(drafts, dict) or not isinstance(facts, dict):
            raise RunError("'drafts' or 'facts' is not a set of entries")
        if strange := [label for label in drafts if not label.isprintable()]:
            raise RunError(f"'drafts' holds a method called {ascii(strange[0])[:60]}")
        return cls(
            identity=Identity.from_plain(value.get("identity")),
            target=MeasuredCosts.from_plain(value.get("target")),
            drafts={label: MeasuredDraftCosts.from_plain(costs, f"drafts.{label}") for label, costs in drafts.items()},
            facts=facts,
        )


def write_costs(path: Path, text: str) -> None:
    """Write a file of measured costs atomically.

    Raises:
        RunError: if the file cannot be written.
    """
    remedy = "free space or give another"
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, remedy)
