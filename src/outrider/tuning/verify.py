"""The best few choices, measured side by side: successive halving under a time limit.

Every round measures the choices that are left and plain decoding in all cells, interleaved by the benchmark's runner,
and keeps the better half. The first round takes half of the groups of every cell; the last two choices are measured
again and again while there is time.

    round 0    six choices    half of the prompts
    round 1    three          all of them
    round 2..  two            all of them

All units lie in one run's directory, so an interrupted run goes on where it stopped; the texts of all choices are
compared with plain decoding's.

Example: `verify(job, choices, seconds=240.0)` returns the units of all rounds.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from outrider.bench.cells import Cell
from outrider.bench.contender import Contender
from outrider.bench.engine_contender import EngineContender
from outrider.bench.runner import Runner
from outrider.data.dialogue import Rules
from outrider.proposer import Proposer
from outrider.proposers.none import NoProposer
from outrider.records.progress import Listener, Progress, unheard
from outrider.records.provenance import Manifest
from outrider.results.rows import PLAIN
from outrider.results.store import RunStore
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.tuning.prices.predict import Pick, score_of, speedups_of
from outrider.tuning.prompts import capped

__all__ = ["Trial", "of_cells", "verify"]

MOST_ROUNDS: Final = 6
LAST: Final = 2


class _TimeIsUpError(Exception):
    """The time limit, raised between two units."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything that a round needs.

    cells_of     function from the number of a round to its cells
    rules_of     function from a cell to the limits and seeds of answers
    load         function from a method with settings to its proposer
    warm_up      token ids to warm up with
    """

    target: Target
    directory: Path
    manifest: Manifest
    cells_of: Callable[[int], list[Cell]]
    rules_of: Callable[[Cell], Rules]
    load: Callable[[str], Proposer]
    max_len: int
    warm_up: Sequence[int]
    listen: Listener = unheard


def verify(job: Trial, choices: Sequence[Pick], *, seconds: float) -> list[UnitResult]:
    """Measure, and return every unit.

    Args:
        choices: candidates, the most promising first.
        seconds: time limit; a unit that has begun is finished.
    """
    end = monotonic() + seconds
    left = list(choices)
    contenders = {PLAIN: _contender(job, Pick(PLAIN, "fixed"), NoProposer())}
    contenders |= {choice.label: _contender(job, choice, job.load(choice.text)) for choice in choices}
    with _frozen(), RunStore(job.directory, job.manifest) as store:
        try:
            for number in range(MOST_ROUNDS):
                if not left:
                    break
                _round(job, store, number, [contenders[label] for label in (PLAIN, *(one.label for one in left))], end)
                left = _better(left, [unit for unit in store.units.values() if unit.repeat <= number])
        except _TimeIsUpError:
            pass
        return _paired(list(store.units.values()))


def _paired(units: Sequence[UnitResult]) -> list[UnitResult]:
    """Return the units of groups that plain decoding has answered: time may end in the middle of a group."""
    known = {unit.pair_key for unit in units if unit.method == PLAIN}
    return [unit for unit in units if unit.pair_key in known]


def of_cells(units: Sequence[UnitResult], cells: Sequence[Cell]) -> list[UnitResult]:
    """Return the units of these cells' groups; a run whose kept files were deleted may hold others."""
    known = {(cell.batch, tuple(one.id for one in group)) for cell in cells for group in cell.groups}
    return [unit for unit in units if (unit.batch, unit.conversations) in known]


@contextmanager
def _frozen() -> Iterator[None]:
    """Hide what is loaded from the garbage collector, which the benchmark runs before every unit."""
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


def _round(job: Trial, store: RunStore, number: int, contenders: Sequence[Contender], end: float) -> None:
    cells = job.cells_of(number)
    if number == 0 and len(contenders) > LAST + 1:
        cells = [capped(cell, -(-len(cell.groups) // 2)) for cell in cells]
    leads = _leader(list(store.units.values()), [contender.name.method for contender in contenders])

    def listen(at: Progress) -> None:
        if monotonic() > end and len(store.units) >= len(contenders):
            raise _TimeIsUpError
        job.listen(Progress(at.done, at.total, f"round {number + 1}: {at.words}{leads}"))

    runner = Runner(
        target=job.target,
        contender_groups=[contenders],
        cells=cells,
        rules_of=job.rules_of,
        verified=lambda temperature: True,
        store=store,
        listen=listen,
    )
    try:
        runner.run()
    except _TimeIsUpError:
        runner.judge()
        raise


def _contender(job: Trial, choice: Pick, proposer: Proposer) -> Contender:
    return EngineContender(
        job.target,
        proposer,
        choice.label,
        state="cold",
        budget=choice.budget,
        verification="coupled",
        max_len=job.max_len,
        warm_up=job.warm_up,
        temperatures=[cell.temperature for cell in job.cells_of(0)[:1]],
    )


def _better(choices: Sequence[Pick], units: Sequence[UnitResult]) -> list[Pick]:
    """Return the better half by what was measured, two at least."""
    scores = _scores(units)
    ranked = sorted(choices, key=lambda choice: -scores.get(choice.label, 0.0))
    return ranked[: max(LAST, len(ranked) // 2)]


def _scores(units: Sequence[UnitResult]) -> dict[str, float]:
    plain = [unit for unit in units if unit.method == PLAIN]
    labels = dict.fromkeys(unit.method for unit in units if unit.method != PLAIN)
    found = {label: speedups_of([unit for unit in units if unit.method == label], plain) for label in labels}
    return {label: score_of(speedups) for label, speedups in found.items() if speedups}


def _leader(units: Sequence[UnitResult], labels: Sequence[str]) -> str:
    scores = {label: score for label, score in _scores(units).items() if label in labels}
    if not scores:
        return ""
    best = max(scores, key=scores.__getitem__)
    return f"; leads: {best}, {scores[best]:.2f} times plain decoding"
