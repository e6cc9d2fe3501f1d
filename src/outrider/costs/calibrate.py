"""Measures a target's forward on this machine, by slots, rows and context.

A forward's time does not depend on the values, so nothing is prefilled: the cache of a scratch session is filled with a
constant (untouched zero pages would all map to one page in the processor's cache), its slots are declared to hold
`context` tokens, and chains of random tokens are read behind them. A sweep times each point of the grid, after a plain
forward that is not timed. Sweeps alternate in direction, and each point has its lower quartile over the sweeps, because
other work on the machine comes in bursts and only slows.

The coupled rule is timed on drafts that are right to the end, so that it reads every row. The rest is committing such a
draft and emitting its tokens, without text.

    forward_s   as `verify_s` of a step: placing the rows, the model, logits
    accept_s    as `accept_s`, at temperature 0 and at temperature 1 without filters
    rest_s      as `commit_s` and `host_s`

Worked example: `measure_target(target, slots=(1,), rows_per_slot=(1, 8), contexts=(512,), repeats=5)` is six sweeps of
two points, one sweep to warm up.
"""

import logging
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count, product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.batch import Batch, Request
from outrider.costs.grid import Grid
from outrider.costs.identity import identity_of, profile_path
from outrider.costs.tables import CostFile, MeasuredCosts, TargetCosts, typical_costs
from outrider.draft import Draft
from outrider.errors import CapacityError, ConfigError, RunError
from outrider.loop.clock import Clock
from outrider.loop.free_memory import free_bytes
from outrider.requests.text import TextStream
from outrider.sampling import SamplingParams, choose
from outrider.target import Target, as_tensor
from outrider.verify import AcceptedPath, VerifyInput, coupled

__all__ = ["Progress", "check_grid", "costs_for", "measure_target", "sweeps"]

log = logging.getLogger(__name__)

GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=1.0)
ENOUGH_S, MOST_TIMINGS = 0.03, 7
"""A point is timed again until its forwards took so long, or were so many: short ones vary most."""
SHORT_SLOTS, SHORT_ROWS, SHORT_CONTEXTS, SHORT_REPEATS, SHORT_S = (1, 4), (1, 2, 4, 8), (64, 1024), 7, 1.5

Progress = Callable[[int, int], None]
"""Called with the number of calls that are done and the most there may be."""


class Point(NamedTuple):
    """One point of the grid: `rows` of each of the slots."""

    slots: int
    rows: int
    context: int


def measure_target(
    target: Target,
    *,
    slots: Sequence[int],
    rows_per_slot: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    limit_s: float = math.inf,
) -> MeasuredCosts:
    """Time forwards on the grid, and what follows them: the lower quartile of several sweeps.

    Args:
        contexts: committed tokens of every slot.
        repeats: timings of every point, after one that is not counted.
        limit_s: begin no further sweep after this many seconds; there is always one.

    Raises:
        ConfigError: if the grid is empty or out of range, or longer than the target's context.
        CapacityError: if the scratch cache does not fit in memory.
    """
    check_grid(target, slots=slots, rows_per_slot=rows_per_slot, contexts=contexts, repeats=repeats)
    start, found = perf_counter(), []
    for costs in sweeps(target, slots=slots, rows_per_slot=rows_per_slot, contexts=contexts):
        found.append(costs)
        if len(found) == repeats or perf_counter() - start > limit_s:
            break
    return typical_costs(found)


def sweeps(
    target: Target,
    *,
    slots: Sequence[int],
    rows_per_slot: Sequence[int],
    contexts: Sequence[int],
    progress: Progress = lambda done, total: None,
) -> Iterator[MeasuredCosts]:
    """Yield the costs of one sweep after another, without end; a sweep before the first warms up.

    Args:
        progress: called with the points of the current sweep that are done, and all of them.
    """
    grid = _Grid(*(tuple(sorted(set(points))) for points in (slots, rows_per_slot, contexts)))
    scratch = _Scratch(target, grid)
    points = [Point(*point) for point in product(*grid)]
    for number in count():
        scratch.forget()
        with target.decoding_threads():
            for index, point in enumerate(points if number % 2 else reversed(points)):
                scratch.time(point)
                progress(index + 1, len(points))
        if number > 0:
            yield scratch.costs()


def costs_for(target: Target) -> TargetCosts:
    """Return the target's costs on this machine: from its profile if there is one, else from a short calibration."""
    path = profile_path(identity_of(target))
    if path.exists():
        try:
            return CostFile.read(path).target
        except RunError as error:  # a damaged profile counts as none
            log.warning("%s", error)
    with _CALIBRATING:  # two calibrations at once would disturb each other
        if path not in _calibrated:
            _calibrated[path] = _calibrate(target)
        return _calibrated[path]


_CALIBRATING = threading.Lock()
_calibrated: dict[Path, TargetCosts] = {}
"""Short calibrations of this process, by the path of the profile."""


def _calibrate(target: Target) -> TargetCosts:
    log.info("calibrating %s for about 2 s; `outrider profile` measures it once and for all", target.spec.name)
    longest = target.spec.max_positions
    rows = [rows for rows in SHORT_ROWS if rows < longest]
    contexts = {min(context, longest - rows[-1]) for context in SHORT_CONTEXTS}
    return measure_target(
        target, slots=SHORT_SLOTS, rows_per_slot=rows, contexts=[*contexts], repeats=SHORT_REPEATS, limit_s=SHORT_S
    )


def check_grid(
    target: Target, *, slots: Sequence[int], rows_per_slot: Sequence[int], contexts: Sequence[int], repeats: int
) -> None:
    """Check a grid before anything is measured.

    Raises:
        ConfigError, CapacityError: as `measure_target`.
    """
    for name, values, low, high in (
        ("batches", slots, 1, 4096),
        ("rows", rows_per_slot, 1, 1024),
        ("contexts", contexts, 0, target.spec.max_positions - 1),
        ("repeats", [repeats], 1, 1000),
    ):
        if not values:
            raise ConfigError(f"{name} is empty; give at least one")
        for value in values:
            if not low <= value <= high:
                raise ConfigError(f"{name}={value} must be between {low} and {high}")
    longest = max(contexts) + max(rows_per_slot)
    if longest > target.spec.max_positions:
        raise ConfigError(
            f"contexts={max(contexts)} and rows={max(rows_per_slot)} are {longest} positions but the target has "
            f"{target.spec.max_positions}; make one smaller"
        )
    _check_fits(target, _Grid(tuple(slots), tuple(rows_per_slot), tuple(contexts)))


class _Grid(NamedTuple):
    slots: tuple[int, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]


def _check_fits(target: Target, grid: _Grid) -> None:
    slots, rows = max(grid.slots), max(grid.rows)
    plan = target.plan(slots, max(grid.contexts) + rows, rows)
    per_slot = plan.bytes_per_slot + 2 * rows * target.spec.vocab_size * 4  # logits, and a copy to choose from
    free = free_bytes(target.spec.device)
    if slots * per_slot > free:
        fitting = int(free // per_slot)
        remedy = (
            f"batches={fitting} would fit"
            if fitting
            else f"not even one fits; give contexts below {max(grid.contexts)}"
        )
        raise CapacityError(
            f"batches={slots} with contexts={max(grid.contexts)} and rows={rows} needs {slots * per_slot / 1e9:.1f} GB"
            f" and {free / 1e9:.1f} GB are free; {remedy}"
        )


@final
class _Scratch:
    """A session that is only timed, and the results of the current sweep."""

    def __init__(self, target: Target, grid: _Grid) -> None:
        spec, rows = target.spec, max(grid.rows)
        self._grid = grid
        self._spec = spec
        self._session = target.open(target.plan(max(grid.slots), max(grid.contexts) + rows, rows))
        self._random = torch.Generator().manual_seed(0)
        self.forget()

    def forget(self) -> None:
        """Begin a new sweep."""
        self._forward_s: dict[Point, float] = {}
        self._accept_s: dict[tuple[int, int, bool], float] = {}
        self._rest_s: dict[int, list[float]] = defaultdict(list)

    def time(self, point: Point) -> None:
        """Time one step of chains at a point, and leave the cache empty."""
        cache, slots = self._session.cache, list(range(point.slots))
        tokens = torch.randint(self._spec.vocab_size, (point.slots, point.rows), generator=self._random).tolist()
        draft = Draft.of_chains([row[1:] for row in tokens], self._spec.device)
        cache.pretend(slots, [point.context] * point.slots)
        roots = [row[0] for row in tokens]
        self._session.forward(slots, roots, Draft.empty(point.slots, self._spec.device))
        timings: list[float] = []
        while not timings or (sum(timings) < ENOUGH_S and len(timings) < MOST_TIMINGS):
            clock = Clock(self._spec.device)
            with clock("verify"):
                forward = self._session.forward(slots, roots, draft)
            timings.append(clock.seconds()["verify_s"])
        # drafts come alone or one after another, and the first finds its code and buffers cold
        self._forward_s[point] = (timings[0] + median(timings[1:] or timings)) / 2
        if point.context == self._grid.contexts[0]:
            for sampling in (SAMPLED, GREEDY):
                own = _own_draft(as_tensor(forward.logits_BMV), point, sampling)
                given = VerifyInput(forward.logits_BMV, cache.lengths_of(slots), [sampling] * point.slots)
                accepted = self._time_accept(own, given, point, sampling)
            self._time_rest(own, accepted, point)
        for slot in slots:
            cache.reset(slot)

    def _time_accept(
        self, own: Draft, given: VerifyInput, point: Point, sampling: SamplingParams
    ) -> list[AcceptedPath]:
        clock = Clock(self._spec.device)
        with clock("accept"):
            accepted = coupled(own, given)
        self._accept_s[point.slots, point.rows, sampling.greedy] = clock.seconds()["accept_s"]
        assert all(len(path.rows) == point.rows - 1 for path in accepted), "the draft is the target's own"
        return accepted

    def _time_rest(self, own: Draft, accepted: list[AcceptedPath], point: Point) -> None:
        batch = Batch(point.slots, self._spec.max_positions + point.rows + 1, ())
        slots = list(range(point.slots))
        for slot in slots:
            params = SamplingParams(max_tokens=2 * point.rows, ignore_eos=True)
            request = Request(id=slot, prompt=(0,), params=params)
            batch.place(request, slot, TextStream(None))
        clock = Clock(self._spec.device)
        with clock("commit"):
            self._session.cache.commit(slots, [path.rows for path in accepted])
        with clock("host"):
            _, events = batch.advance(own, accepted)
            batch.commits(accepted, events)
        seconds = clock.seconds()
        self._rest_s[point.slots].append(seconds["commit_s"] + seconds["host_s"])

    def costs(self) -> MeasuredCosts:
        """Return the costs of the sweep; the rest of a step is the median over the rows."""
        slots, rows, contexts = self._grid
        judged = {"slots": slots, "rows_per_slot": rows}

        def accept(greedy: bool) -> Grid:
            return Grid(judged, [[self._accept_s[s, r, greedy] for r in rows] for s in slots])

        forward_s = [[[self._forward_s[Point(s, r, c)] for c in contexts] for r in rows] for s in slots]
        return MeasuredCosts(
            forward=Grid({**judged, "contexts": contexts}, forward_s),
            accept_greedy=accept(True),
            accept_sampled=accept(False),
            rest=Grid({"slots": slots}, [median(self._rest_s[s]) for s in slots]),
        )


def _own_draft(logits_BMV: Tensor, point: Point, sampling: SamplingParams) -> Draft:
    """Return chains of the target's own tokens at these rows, which are accepted to the end."""
    num_slots, num_rows, _ = logits_BMV.shape
    positions_R = (torch.arange(num_rows) + point.context + 1).repeat(num_slots).to(logits_BMV.device)
    own_R = choose(logits_BMV.flatten(0, 1), positions_R, [sampling] * (num_slots * num_rows))
    return Draft.of_chains(own_R.view(num_slots, num_rows)[:, :-1].tolist(), logits_BMV.device)
