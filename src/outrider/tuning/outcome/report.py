"""The result of tuning: the JSON document `outrider.tune/1` that ends the command's output.

    {"schema": "outrider.tune/1", "target": "...", "method": "eagle3:num_nodes=3", "budget": "auto", "off_from": 4,
     "sentence": "Use ...", "speedups": [{"concurrency": 1, "point": 1.6, "low": 1.5, "high": 1.7}], ...}

`method` is "none" where plain decoding is best. With `is_prediction` nothing was timed: `speedups` are predicted for
other hardware, without intervals. What is not known is null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from outrider.costs.tuned import TunedSpeedup
from outrider.results.rows import Waterfall
from outrider.results.statistics import Interval
from outrider.tuning.endpoint.facts import ServedFacts

__all__ = ["TUNE_SCHEMA", "CheckedChoice", "Forecast", "RefusedDrafter", "TuneReport", "TuneRow"]

TUNE_SCHEMA: Final = "outrider.tune/1"


@dataclass(frozen=True, kw_only=True)
class TuneRow:
    """A measured cell.

    category   "all" sums up
    lossless   verdict on the texts, as in the benchmark
    """

    method: str
    budget: Literal["fixed", "auto"]
    category: str
    concurrency: int
    num_prompts: int
    tau: float | None
    tokens_per_s: float | None
    speedup: Interval | None
    lossless: str


@dataclass(frozen=True, kw_only=True)
class CheckedChoice:
    """A predicted speedup beside the measured one; `error` is relative, positive where the prediction was too high."""

    method: str
    budget: Literal["fixed", "auto"]
    concurrency: int
    predicted: float
    measured: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A setting that was predicted; `speedups` in the order of the report's `concurrency`."""

    method: str
    budget: Literal["fixed", "auto"]
    speedups: tuple[float, ...]
    score: float


@dataclass(frozen=True, kw_only=True)
class RefusedDrafter:
    """A drafter that takes no part, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """The result.

    run             directory of everything that was measured
    method          method to use, as on a command line; "none" is plain decoding
    off_from        requests at once from which on drafting does not pay; None if it pays at all that were asked
    crossover       the same between the measured numbers, by interpolation
    limit           sentence on what limits the speedup
    median_error    median absolute error of the predictions that were measured, of fixed budgets
    num_degenerate  prompts whose answer is a loop; they are left out
    recipe          file for `outrider bench --preset`
    kept            file in which `--method auto` finds the result
    deploy          lines that start the engine that was asked for
    seconds         time that each stage took
    served          facts of the server that was looked at; None where the target ran here. `method` "served" is then
                    what the server does now
    """

    schema: str = TUNE_SCHEMA
    run: str
    target: str
    machine: str
    temperature: float
    concurrency: tuple[int, ...]
    is_prediction: bool
    method: str
    budget: Literal["fixed", "auto"]
    sentence: str
    speedups: tuple[TunedSpeedup, ...]
    off_from: int | None
    crossover: float | None
    limit: str | None
    waterfall: Waterfall | None
    rows: tuple[TuneRow, ...]
    checks: tuple[CheckedChoice, ...]
    median_error: float | None
    forecasts: tuple[Forecast, ...]
    refused: tuple[RefusedDrafter, ...]
    num_prompts: int
    num_degenerate: int
    notes: tuple[str, ...]
    recipe: str | None = None
    kept: str | None = None
    deploy: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    served: ServedFacts | None = None

    def rows_of(self, category: str) -> Sequence[TuneRow]:
        """Return the measured rows of a category."""
        return [row for row in self.rows if row.category == category]
