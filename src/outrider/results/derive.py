"""From what was recorded to what is reported: units in, rows out, by pure functions.

A row sums up the units of one cell. Its counts are those of
`outrider.metrics.summarize` over all steps of all repeats, its costs those of `outrider.results.cost`. Its times
compare each unit with the plain unit that did the same work beside it (`UnitResult.pair_key`):

    speedup             (decode_s / tokens) of plain decoding over (decode_s / tokens) of the method: geometric mean
                        over prompts, with its interval (`outrider.results.statistics`)
    speedup_end_to_end  the same with wall_s, so with prefill and everything else
    total_speedup       total (tokens / decode_s) of the method over that of plain decoding
    tokens_per_s        tokens / decode_s of each repeat, all requests together; the median over repeats
    tpot_s              seconds per token of a request after its first burst

Each run's time is divided by its own tokens. In a batch, a group of prompts is one pair.

A cell is `exact` or `ties` only if every answer of it was compared. A serving engine is compared with its own plain
decoding, and its counts come from `outrider.results.counters`.

Worked example: plain decoding took 1.0 s for 50 tokens, the method 0.5 s for the same 50: speedup 2.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Literal, NamedTuple

from outrider.metrics import StepRecord, summarize
from outrider.results.cost import plain_forward_s, step_cost
from outrider.results.counters import Seen, figures_of, total_of
from outrider.results.equality.summary import equality_of, summarize_verdicts
from outrider.results.latency import first_token_s, per_token_s
from outrider.results.rows import PLAIN, SERVING, Equality, Lossless, Row
from outrider.results.statistics import Interval, paired_speedup, percentiles
from outrider.results.unit import UnitResult

__all__ = ["ALL", "Machine", "derive_row", "derive_rows"]

ALL = "all"


class Machine(NamedTuple):
    """Bytes of the weights, and bytes per second that the machine can read.

    With a mixture of experts a plain forward reads fewer weights: `bytes_read` gives them by the number of its rows.
    """

    weight_bytes: int
    bytes_per_s: float
    bytes_read: Callable[[float], float] | None = None


def derive_rows(units: Iterable[UnitResult], machine: Machine | None = None) -> list[Row]:
    """Return every row of a run in the order of the units: each cell by category, and over all if there are several."""
    units = list(units)
    cells: dict[_Cell, list[UnitResult]] = defaultdict(list)
    for unit in units:
        cells[_Cell.of(unit)].append(unit)
    rows = []
    for cell, members in cells.items():
        plain = [unit for unit in units if cell.can_compare(unit)]
        categories = list(dict.fromkeys(unit.category for unit in members))
        for category in categories:
            rows.append(derive_row(_of(category, members), _of(category, plain), category, machine))
        if len(categories) > 1:
            rows.append(derive_row(members, _of_any(categories, plain), ALL, machine))
    return rows


def derive_row(
    units: Sequence[UnitResult], plain: Sequence[UnitResult], category: str, machine: Machine | None = None
) -> Row:
    """Derive one row from the units of a cell.

    Args:
        units: units of one engine, method, batch, temperature and state.
        plain: units of plain decoding, for the same prompts; those without a counterpart are left out of speedups.
    """
    assert len({_Cell.of(unit) for unit in units}) == 1, "a row sums up one cell"
    first = units[0]
    pairs = _pairs(units, plain)
    equality = _equality(first, pairs)
    speedup = _speedup(pairs, "decode_s")
    return Row(
        engine=first.engine,
        method=first.method,
        category=category,
        batch=first.batch,
        temperature=first.temperature,
        state=first.state,
        forced_length=first.forced_length,
        scripted=first.scripted,
        num_prompts=len({(unit.category, id) for unit in units for id in unit.conversations}),
        num_repeats=len({unit.repeat for unit in units}),
        num_tokens=sum(unit.num_tokens for unit in units),
        speedup=speedup,
        speedup_end_to_end=_speedup(pairs, "wall_s"),
        total_speedup=_total_speedup(pairs),
        bandwidth_share=_bandwidth_share(units, machine) if _is_plain(first) else None,
        memory_bytes=_largest([unit.memory_bytes for unit in units]),
        lossless=_lossless(units) if equality is None else _served_lossless(units, equality),
        equality=equality,
        **_counts(units),
        **_costs(_steps(units), _steps(plain), speedup),
        **_latencies(units),
        **_rates(units),
    )


class _Cell(NamedTuple):
    engine: str
    method: str
    batch: int
    temperature: float
    state: Literal["cold", "warm"]
    forced_length: bool

    @classmethod
    def of(cls, unit: UnitResult) -> "_Cell":
        return cls(unit.engine, unit.method, unit.batch, unit.temperature, unit.state, unit.forced_length)

    def can_compare(self, unit: UnitResult) -> bool:
        engine = self.engine if self.engine in SERVING else "outrider"
        mine = (engine, PLAIN, self.batch, self.temperature, self.forced_length)
        return mine == (unit.engine, unit.method, unit.batch, unit.temperature, unit.forced_length)


def _is_plain(unit: UnitResult) -> bool:
    return unit.engine in ("outrider", *SERVING) and unit.method == PLAIN


def _of(category: str, units: Iterable[UnitResult]) -> list[UnitResult]:
    return _of_any([category], units)


def _of_any(categories: Sequence[str], units: Iterable[UnitResult]) -> list[UnitResult]:
    return [unit for unit in units if unit.category in categories]


def _steps(units: Iterable[UnitResult]) -> list[StepRecord]:
    return [step for unit in units for step in unit.steps]


class _Pair(NamedTuple):
    plain: UnitResult
    own: UnitResult


def _pairs(units: Sequence[UnitResult], plain: Sequence[UnitResult]) -> list[list[_Pair]]:
    """Return the units and their plain counterparts, [prompts][repeats]."""
    counterparts = {unit.pair_key: unit for unit in plain}
    by_prompt: dict[tuple[Any, ...], list[_Pair]] = defaultdict(list)
    for unit in sorted(units, key=lambda unit: unit.repeat):
        if unit.pair_key in counterparts:
            by_prompt[unit.category, unit.conversations].append(_Pair(counterparts[unit.pair_key], unit))
    return list(by_prompt.values())


def _speedup(pairs: list[list[_Pair]], time: Literal["decode_s", "wall_s"]) -> Interval | None:
    rates = [[(_s_per_token(pair.plain, time), _s_per_token(pair.own, time)) for pair in repeats] for repeats in pairs]
    known = [[(base, own) for base, own in repeats if base and own] for repeats in rates]
    known = [repeats for repeats in known if repeats]
    if not known:
        return None
    return paired_speedup(*([[both[side] for both in repeats] for repeats in known] for side in (0, 1)))


def _s_per_token(unit: UnitResult, time: Literal["decode_s", "wall_s"]) -> float:
    """Return the seconds per token; 0 where unknown."""
    if time == "wall_s":
        return unit.wall_s / unit.num_tokens if unit.num_tokens else 0.0
    return (unit.decode_s or 0.0) / unit.num_decode_tokens if unit.num_decode_tokens else 0.0


def _total_speedup(pairs: list[list[_Pair]]) -> float | None:
    flat = [pair for repeats in pairs for pair in repeats]
    own, base = _tokens_per_s([pair.own for pair in flat]), _tokens_per_s([pair.plain for pair in flat])
    return own / base if own and base else None


def _tokens_per_s(units: Sequence[UnitResult]) -> float | None:
    times = [unit.decode_s for unit in units]
    seconds = sum(time for time in times if time is not None)
    return sum(unit.num_decode_tokens for unit in units) / seconds if None not in times and seconds else None


def _rates(units: Sequence[UnitResult]) -> dict[str, Any]:
    repeats: dict[int, list[UnitResult]] = defaultdict(list)
    for unit in units:
        repeats[unit.repeat].append(unit)
    decode = [_tokens_per_s(members) for members in repeats.values()]
    wall = [
        sum(unit.num_tokens for unit in members) / sum(unit.wall_s for unit in members) for members in repeats.values()
    ]
    known = [rate for rate in decode if rate is not None]
    return {
        "tokens_per_s": median(known) if known else None,
        "tokens_per_s_end_to_end": median(wall),
        "repeat_spread": (max(known) - min(known)) / median(known) if len(known) > 1 else None,
    }


def _counts(units: Sequence[UnitResult]) -> dict[str, Any]:
    steps = _steps(units)
    if not steps:
        return _served_counts(units)
    summary = summarize(steps)
    return {
        "tau": summary.tokens_per_target_forward,
        "mean_acceptance_length": summary.mean_acceptance_length,
        "draft_coverage": summary.draft_coverage,
        "draft_acceptance_rate": summary.draft_acceptance_rate,
        "node_efficiency": summary.node_efficiency,
        "acceptance_per_pos": summary.acceptance_per_pos,
        "conditional_acceptance_per_pos": summary.conditional_acceptance_per_pos,
        "wasted_rows": summary.wasted_rows,
        "shares": summary.shares,
    }


def _served_counts(units: Sequence[UnitResult]) -> dict[str, Any]:
    counters = [unit.counters for unit in units if unit.counters is not None]
    if len(counters) < len(units):
        return {}
    behind = [(len(answer.tokens) - 1, max(0, len(answer.bursts) - 1)) for unit in units for answer in unit.answers]
    seen = Seen(num_tokens=sum(tokens for tokens, _ in behind), num_bursts=sum(bursts for _, bursts in behind))
    return figures_of(total_of(counters), seen)


def _costs(steps: Sequence[StepRecord], plain: Sequence[StepRecord], speedup: Interval | None) -> dict[str, Any]:
    cost = step_cost(steps, plain)
    if cost is None:
        return {}
    tau = summarize(steps).tokens_per_target_forward
    assert tau is not None, "a step has at least one slot"
    falls = cost.waterfall(tau, None if speedup is None else speedup.point)
    return {
        "verify_cost_ratio": cost.verify,
        "draft_cost_ratio": cost.draft,
        "overhead_ratio": cost.overhead,
        "break_even_tau": cost.break_even_tau,
        "predicted_speedup": falls.with_host,
        "waterfall": falls,
    }


def _latencies(units: Sequence[UnitResult]) -> dict[str, Any]:
    answers = [answer for unit in units for answer in unit.answers]
    per_token = [seconds for unit in units for seconds in per_token_s(unit)]
    bursts = [float(slot.num_emitted) for step in _steps(units) for slot in step.slots]
    bursts += [float(tokens) for answer in answers for tokens in answer.bursts]
    return {
        "ttft_s": percentiles([seconds for unit in units for seconds in first_token_s(unit)]),
        "tpot_s": percentiles(per_token),
        "burst_tokens": percentiles(bursts),
        "tokens_per_s_per_request": 1 / median(per_token) if per_token and median(per_token) else None,
    }


def _bandwidth_share(units: Sequence[UnitResult], machine: Machine | None) -> float | None:
    forward_s = plain_forward_s(_steps(units))
    if machine is None or not forward_s:
        return None
    slots = max(forward_s)
    num_bytes = machine.weight_bytes if machine.bytes_read is None else machine.bytes_read(slots)
    return num_bytes / forward_s[slots] / machine.bytes_per_s


def _largest(sizes: Sequence[Mapping[str, int]]) -> Mapping[str, int] | None:
    largest: dict[str, int] = {}
    for named in sizes:
        largest |= {name: max(size, largest.get(name, 0)) for name, size in named.items()}
    return largest or None


def _equality(first: UnitResult, pairs: Sequence[Sequence[_Pair]]) -> Equality | None:
    """Compare greedy texts of a serving engine; sampled ones need not be equal there."""
    if first.engine not in SERVING or first.method == PLAIN or first.temperature > 0:
        return None
    return equality_of((pair.own, pair.plain) for repeats in pairs for pair in repeats)


def _served_lossless(units: Sequence[UnitResult], equality: Equality) -> Lossless:
    num_answers = sum(len(unit.answers) for unit in units)
    if equality.num_equal < num_answers:
        return Lossless()
    return Lossless(verdict="exact", num_compared=sum(unit.num_tokens for unit in units))


def _lossless(units: Sequence[UnitResult]) -> Lossless:
    named = [(unit, answer) for unit in units for answer in unit.answers]
    judged = [(answer.verdict, f"{unit.unit} turn {answer.turn}") for unit, answer in named if answer.verdict]
    if not judged and _is_plain(units[0]):
        return Lossless(verdict="exact")
    lossless = summarize_verdicts(*map(list, zip(*judged, strict=True))) if judged else Lossless()
    complete = len(judged) == len(named) or lossless.verdict == "violated"
    return lossless if complete else replace(lossless, verdict="unverified")
