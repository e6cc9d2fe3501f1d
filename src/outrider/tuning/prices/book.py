"""Costs of steps on this machine: the target's table and those of drafters, measured where they are not on file.

Tables lie in `tuned/<identity>.costs.json` of the cache, as `outrider.costs.tables.CostFile`. A profile that
`outrider profile` left serves as well, where it covers the batches and rows that are asked; where there is none, the
target's table becomes one, since engines read it. Lookups cost next to nothing, and all settings of one share a table.

Example: `CostBook(target, CostGrid((1, 4), (1, 2, 4), (128, 512))).target_costs(limit_s=30.0)`.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple, final

from outrider.costs.calibrate import sweeps
from outrider.costs.calibrate_draft import measure_draft
from outrider.costs.identity import identity_of, profile_path
from outrider.costs.tables import CostFile, MeasuredCosts, MeasuredDraftCosts, spread, typical_costs
from outrider.env import cache_home
from outrider.errors import RunError
from outrider.proposer import Proposer
from outrider.proposers.none import NoProposer
from outrider.results.rows import PLAIN
from outrider.target import Target
from outrider.tuning.candidates import Family

__all__ = ["CostBook", "CostGrid", "cost_grid"]

MOST_SWEEPS: Final = 7
TIMINGS: Final = 5
ROWS: Final = (1, 2, 3, 4, 6, 9)
NODES: Final = (0, 1, 3)
"""Nodes at which drafters are timed, beside the most that they draft."""


class CostGrid(NamedTuple):
    """Points of the target's table: slots, rows per slot, committed tokens per slot."""

    batches: tuple[int, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]


def cost_grid(concurrency: Sequence[int], lengths: Sequence[tuple[int, int]], max_positions: int) -> CostGrid:
    """Return the points that cover these loads and texts.

    Args:
        lengths: tokens of each prompt, and of the prompt with its answer.
    """
    rows = tuple(count for count in ROWS if count < max_positions)
    most = max_positions - rows[-1]
    begin, end = (sorted(part) for part in zip(*lengths, strict=True))
    contexts = {min(most, begin[len(begin) // 4]), min(most, end[3 * len(end) // 4])}
    return CostGrid(tuple(sorted({1, *concurrency})), rows, tuple(sorted(contexts)))


@final
class CostBook:
    """The tables of one machine and target, on file as soon as they are measured."""

    def __init__(self, target: Target, grid: CostGrid) -> None:
        self.target = target
        self.grid = grid
        identity = identity_of(target)
        self.profile = profile_path(identity)
        self.path = cache_home() / "tuned" / f"{self.profile.stem}.costs.json"
        self._identity = identity
        self._file = _read(self.path)

    def target_costs(self, limit_s: float) -> MeasuredCosts:
        """Return the target's table: from the file, from a profile, or from sweeps for about so many seconds."""
        on_file = [
            one for one in (self._file, _read(self.profile)) if one is not None and covers(one.target, self.grid)
        ]
        own, apart = (on_file[0].target, on_file[0].spread) if on_file else _swept(self.target, self.grid, limit_s)
        self._set(own, apart)
        if not self.profile.exists():
            CostFile(identity=self._identity, target=own, facts={"spread": apart}).write(self.profile)
        return own

    @property
    def spread(self) -> float | None:
        """Share by which the sweeps were apart, if known."""
        return None if self._file is None else self._file.spread

    def plain(self) -> MeasuredDraftCosts:
        """Return the table of the empty draft."""
        return self._table(PLAIN) or self._measured(PLAIN, NoProposer(), (0,))

    def known(self, family: Family) -> MeasuredDraftCosts | None:
        """Return a family's table if it is on file."""
        return self._table(_key(family), family.deepest.spec.max_nodes)

    def measure(self, family: Family) -> MeasuredDraftCosts:
        """Time a family's drafts, and file the table."""
        most = family.deepest.spec.max_nodes
        return self._measured(_key(family), family.deepest, (*(count for count in NODES if count < most), most))

    def _table(self, key: str, most: int = 0) -> MeasuredDraftCosts | None:
        found = None if self._file is None else self._file.drafts.get(key)
        if found is None or not {*self.grid.batches} <= {*map(int, found.propose.axes["slots"])}:
            return None
        return found if max(found.propose.axes["nodes_per_slot"]) >= most else None

    def _measured(self, key: str, proposer: Proposer, nodes: Sequence[int]) -> MeasuredDraftCosts:
        found = measure_draft(self.target, proposer, slots=self.grid.batches, nodes=nodes, repeats=TIMINGS)
        assert self._file is not None, "the target's table comes first"
        drafts = {**self._file.drafts, key: found}
        self._file = CostFile(identity=self._identity, target=self._file.target, drafts=drafts, facts=self._file.facts)
        self._file.write(self.path)
        return found

    def _set(self, own: MeasuredCosts, apart: float | None) -> None:
        drafts = {} if self._file is None else dict(self._file.drafts)
        self._file = CostFile(identity=self._identity, target=own, drafts=drafts, facts={"spread": apart})
        self._file.write(self.path)


def covers(costs: MeasuredCosts, grid: CostGrid) -> bool:
    """Return whether a table was measured for these batches and rows, and about as far as these contexts go."""
    axes = costs.forward.axes
    return (
        {*grid.batches} <= {*map(int, axes["slots"])}
        and max(grid.rows) <= max(axes["rows_per_slot"])
        and min(axes["contexts"]) <= 2 * min(grid.contexts)
        and max(grid.contexts) <= 2 * max(axes["contexts"])
    )


def _key(family: Family) -> str:
    """Return a family's name in the file: a lookup is called by its method."""
    return family.base if family.deepest.spec.num_bytes else family.base.partition(":")[0]


def _read(path: Path) -> CostFile | None:
    try:
        return CostFile.read(path) if path.exists() else None
    except RunError:  # a damaged file counts as none
        return None


def _swept(target: Target, grid: CostGrid, limit_s: float) -> tuple[MeasuredCosts, float | None]:
    start, found = perf_counter(), list[MeasuredCosts]()
    for costs in sweeps(target, slots=grid.batches, rows_per_slot=grid.rows, contexts=grid.contexts):
        found.append(costs)
        spent = perf_counter() - start
        if len(found) == MOST_SWEEPS or spent + spent / (len(found) + 1) > limit_s:
            break
    return typical_costs(found), spread(found) if len(found) > 1 else None
