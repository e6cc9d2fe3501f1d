"""Shares of the time, and the number of choices that can be verified in what is left.

    answers    a few hundredths, or one round over the categories and as many prompts as requests at once
    replays    up to a fifth
    costs      up to a fifth, where nothing is on file, and a few hundredths for runs of the adaptive budget
    verifying  what is left

In passes of one choice over all prompts, the first round of n choices takes (n + 1) / 2 and the second n / 2 + 1, of
which a third should fit: the largest numbers of requests come first. The largest n up to `MOST` for which that holds is
taken; where two do not fit, fewer groups of each cell are measured.

Example: 100 s and passes of 20 s are five passes: n = 6 takes 3.5 + 1.3 = 4.8 of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from time import monotonic
from typing import Any, Final, Self

from outrider.bench.cells import Cell
from outrider.errors import ConfigError
from outrider.proposers.method_spec import method_specs
from outrider.records.json_fields import Fields
from outrider.results.unit import UnitResult
from outrider.tuning.prices.predict import Pick, Predicted
from outrider.tuning.prompts import capped

__all__ = ["MOST", "Schedule", "Shortlist", "shortlist"]

WRITE, REPLAY, FORWARDS, DRAFTS, RUNS, END = 0.04, 0.2, 0.08, 0.12, 0.06, 0.95
MOST, LEAST = 6, 2
MOST_OF_A_FAMILY: Final = 3
SECONDS_A_PROMPT: Final = 25
SLACK: Final = 1.2
"""Time that measuring takes beside decoding and reading prompts: opening engines, comparing texts."""


@dataclass
class Schedule:
    """Shares of the time, from `start` on."""

    start: float
    seconds: float
    prefill_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note the time that a stage takes."""
        began = monotonic()
        try:
            yield
        finally:
            self.stages[name] = round(self.stages.get(name, 0.0) + monotonic() - began, 1)

    @property
    def spent(self) -> float:
        return monotonic() - self.start

    def may_write(self) -> bool:
        """Return whether there is time to write more answers."""
        return self.spent < WRITE * self.seconds

    def most_prompts(self, needed: int) -> int:
        """Return how many prompts can be measured in the time; at least as many as are needed."""
        return max(needed, round(self.seconds / SECONDS_A_PROMPT))

    @property
    def end_of_replays(self) -> float:
        """Monotonic time after which no further replay begins."""
        return max(self.start, monotonic()) + REPLAY * self.seconds

    @property
    def for_forwards(self) -> float:
        """Seconds to time the target's forwards."""
        return FORWARDS * self.seconds

    @property
    def end_of_drafts(self) -> float:
        """Monotonic time after which no further drafter is timed."""
        return monotonic() + DRAFTS * self.seconds

    @property
    def end_of_runs(self) -> float:
        """Monotonic time after which the adaptive budget is run along no further setting's answers."""
        return monotonic() + RUNS * self.seconds

    @property
    def for_verifying(self) -> float:
        """Seconds to measure choices; a tenth of the whole at least."""
        return max(0.1 * self.seconds, END * self.seconds - self.spent)


@dataclass(frozen=True)
class Shortlist:
    """Choices to verify, and the share of each cell's groups to measure."""

    choices: tuple[Pick, ...]
    share: float

    def to_plain(self) -> dict[str, Any]:
        """Return the value that `from_plain` reads."""
        return {"choices": [list(choice) for choice in self.choices], "share": self.share}

    @classmethod
    def from_plain(cls, kept: Fields) -> Self:
        """Return the shortlist that a run has kept.

        Raises:
            OutriderError: of the class of `kept`, if it is damaged.
        """
        choices = kept.array("choices")
        if not all(map(_is_choice, choices)):
            kept.refuse("choices", "a list of methods, each with fixed or auto")
        return cls(tuple(Pick(text, budget) for text, budget in choices), kept.number("share", above=0.0, high=1.0))

    def capped(self, cell: Cell) -> Cell:
        """Return a cell with its share of the groups, one at least."""
        return capped(cell, ceil(self.share * len(cell.groups)))


def _is_choice(value: object) -> bool:
    """Return whether a value is a method that is known, with its settings, and a budget."""
    match value:
        case [str(text), "fixed" | "auto"]:
            try:
                return bool(method_specs([text]))
            except ConfigError:
                return False
    return False


def shortlist(
    predicted: Sequence[Predicted], plain: Sequence[UnitResult], seconds: float, prefill_s: float
) -> Shortlist:
    """Return the choices to verify in so many seconds.

    Args:
        predicted: all choices.
        plain: units of plain decoding, timed.
        prefill_s: seconds of reading all prompts once.
    """
    batches = {unit.batch for unit in plain}
    pass_s = SLACK * (sum(unit.decode_s or 0.0 for unit in plain) + prefill_s * len(batches))
    fits = next((count for count in range(MOST, LEAST - 1, -1) if _passes(count) * pass_s <= seconds), None)
    choices = _promising(predicted, fits or LEAST)
    share = 1.0 if fits else min(1.0, seconds / (_passes(LEAST) * pass_s))
    return Shortlist(tuple(choices), share)


def _passes(count: int) -> float:
    return (count + 1) / 2 + (count / 2 + 1) / 3


def _promising(predicted: Sequence[Predicted], count: int) -> list[Pick]:
    """Return the best, of each family at most `MOST_OF_A_FAMILY`; a budget that is off everywhere is plain decoding."""
    found: list[Predicted] = []
    ever_on = [one for one in predicted if one.choice.budget == "fixed" or max(one.speedups.values()) > 1.0]
    for one in sorted(ever_on, key=lambda one: -one.score):
        if sum(other.base == one.base for other in found) < MOST_OF_A_FAMILY:
            found.append(one)
    return [one.choice for one in found[:count]]
