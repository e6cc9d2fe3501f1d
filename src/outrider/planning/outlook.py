"""The plan: for every method, batch size and number of nodes, what to expect; the result schema "outrider.plan/1".

    {"schema": "outrider.plan/1", "target": "...", "costs": "...", "margin": 0.05,
     "methods": [{"method": "...", "crossover_batch": 23, "even_from": 17, "loses_from": 30,
                  "batches": [{"batch": 1, "best": {...}, "nodes": [...]}]}]}

`best` is the entry of `nodes` with the largest speedup; its `num_nodes` is 0 where plain decoding is fastest. A
`crossover_batch` of 1 says that the method never pays, null that it still pays at `largest_batch`, beyond which nothing
is said. Speedups closer to 1 than the `margin` of the costs are about even. Numbers are numbers, and what was not asked
for is null.

Worked example: flat costs and one node accepted half of the time give tau 1.5 at any batch size: the speedup is 1.5,
and there is no crossover.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from outrider.planning.acceptance_profile import AcceptanceProfile
from outrider.planning.check import Check, CostTables
from outrider.planning.predict import Method, Prediction, Setting, best, crossover, predict
from outrider.results.rows import Waterfall

__all__ = [
    "PLAN_SCHEMA",
    "BatchOutlook",
    "BestMethod",
    "Forecast",
    "MethodOutlook",
    "Outlook",
    "PlanScope",
    "best_methods",
    "outlook_of",
]

PLAN_SCHEMA: Final = "outrider.plan/1"


@dataclass(frozen=True, kw_only=True)
class PlanScope:
    """Batches, draft sizes and texts to plan for.

    batches        in rising order
    nodes          numbers of nodes to choose from; 0 is always among the choices
    largest_batch  largest batch at which the crossover is looked for
    margin         a speedup this share away from 1, or less, is about even
    """

    batches: tuple[int, ...]
    nodes: tuple[int, ...]
    context: float
    temperature: float
    num_tokens: int | None
    largest_batch: int
    margin: float = 0.0

    def setting(self, batch: int) -> Setting:
        return Setting(num_slots=batch, context=self.context, greedy=self.temperature == 0, num_tokens=self.num_tokens)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One number of nodes at one batch size; `step_ms` by part."""

    num_nodes: int
    depth: int
    tau: float
    speedup: float
    break_even_tau: float
    tokens_per_s: float
    step_ms: Mapping[str, float]
    waterfall: Waterfall

    @classmethod
    def of(cls, one: Prediction) -> "Forecast":
        parts = ("verify", "propose", "accept", "rest")
        return cls(
            num_nodes=one.num_nodes,
            depth=one.depth,
            tau=one.tau,
            speedup=one.speedup,
            break_even_tau=one.break_even_tau,
            tokens_per_s=one.tokens_per_s,
            step_ms={part: 1e3 * getattr(one.step, f"{part}_s") for part in parts},
            waterfall=one.waterfall,
        )


@dataclass(frozen=True, kw_only=True)
class BatchOutlook:
    """One batch size: the best number of nodes, and all of them."""

    batch: int
    plain_tokens_per_s: float
    best: Forecast
    nodes: tuple[Forecast, ...]


@dataclass(frozen=True, kw_only=True)
class MethodOutlook:
    """One method. `known_depth` levels of its acceptance were given; deeper ones repeat the last.

    From batch `even_from` on it is about even, and from `loses_from` on it loses by more than the margin.
    """

    method: str
    acceptance: AcceptanceProfile
    known_depth: int
    crossover_batch: int | None
    even_from: int | None
    loses_from: int | None
    batches: tuple[BatchOutlook, ...]


@dataclass(frozen=True, kw_only=True)
class BestMethod:
    """The best choice at one batch size: the largest speedup of all methods. Without a method, plain decoding.

    `about_even` says that the speedup is within the margin of 1.
    """

    batch: int
    method: str | None
    num_nodes: int
    depth: int
    speedup: float
    break_even_tau: float
    about_even: bool = False


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The whole result; `check` instead of `methods` and `best` where a run was checked."""

    schema: str = PLAN_SCHEMA
    target: str
    costs: str
    context: float
    temperature: float
    num_tokens: int | None = None
    largest_batch: int | None = None
    margin: float = 0.0
    notes: tuple[str, ...] = ()
    methods: tuple[MethodOutlook, ...] = ()
    best: tuple[BestMethod, ...] = ()
    check: Check | None = None


def outlook_of(scope: PlanScope, methods: Mapping[str, Method], tables: CostTables) -> tuple[MethodOutlook, ...]:
    """Return every method's part of the plan."""
    return tuple(_method(label, method, scope, tables) for label, method in methods.items())


def best_methods(methods: Sequence[MethodOutlook], margin: float = 0.0) -> tuple[BestMethod, ...]:
    """Return the best of all methods, by batch size; of equals the first."""
    chosen = []
    for batches in zip(*(method.batches for method in methods), strict=True):
        top, label = max(zip(batches, methods, strict=True), key=lambda pair: pair[0].best.speedup)
        found = top.best
        chosen.append(
            BestMethod(
                batch=top.batch,
                method=label.method if found.num_nodes else None,
                num_nodes=found.num_nodes,
                depth=found.depth,
                speedup=found.speedup,
                break_even_tau=found.break_even_tau,
                about_even=bool(found.num_nodes) and found.speedup <= 1 + margin,
            )
        )
    return tuple(chosen)


def _method(label: str, method: Method, scope: PlanScope, tables: CostTables) -> MethodOutlook:
    def forecasts(batch: int, nodes: Sequence[int]) -> list[Prediction]:
        setting = scope.setting(batch)
        return [predict(tables.target, method, setting, count, tables.plain) for count in nodes]

    def first_below(speedup: float) -> int | None:
        return crossover(lambda batch: best(forecasts(batch, drafting)).speedup > speedup, scope.largest_batch)

    drafting = [count for count in scope.nodes if count > 0]
    batches = []
    for batch in scope.batches:
        found = forecasts(batch, (0, *drafting))
        batches.append(
            BatchOutlook(
                batch=batch,
                plain_tokens_per_s=found[0].tokens_per_s,
                best=Forecast.of(best(found)),
                nodes=tuple(map(Forecast.of, found)),
            )
        )
    return MethodOutlook(
        method=label,
        acceptance=method.acceptance,
        known_depth=len(method.acceptance.ranks),
        crossover_batch=first_below(1.0),
        even_from=first_below(1 + scope.margin),
        loses_from=first_below(1 / (1 + scope.margin)),
        batches=tuple(batches),
    )
