"""Cost against break-even: what tau must be on this machine for drafting to pay, and what it is.

    break-even tau = seconds of a step with a draft / seconds of a plain step

Costs come from `outrider profile` where its result for this target and machine is at hand. Else some steps of both
kinds are timed here, unless something else uses the machine.

Example: a plain step of 4 ms and a drafted one of 6 ms need a tau of 1.5; with 2.1 decoding is 1.4 times as fast.
"""

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Final

from outrider.costs.identity import identity_of, profile_path
from outrider.costs.tables import CostFile
from outrider.doctor.finding import Finding
from outrider.doctor.trial import DEPTH, Known
from outrider.engine import Engine
from outrider.errors import RunError
from outrider.metrics import PrefillRecord, StepRecord
from outrider.params import SamplingParams
from outrider.planning.drafters import measured
from outrider.planning.predict import FreeDrafts
from outrider.proposer import Proposer
from outrider.proposers import load_proposer
from outrider.results.rows import PLAIN
from outrider.target import Target

__all__ = ["break_even", "price_finding", "spread"]

TOKENS: Final = 24
UNSTEADY: Final = 0.25
"""Spread of step times from which on something else uses the machine."""
CONTEXT: Final = 256.0


def price_finding(target: Target, proposer: Proposer, method: str, known: Known, tau: float) -> Finding:
    """Return what this drafter needs and has, with chains as deep as tau was measured with."""
    depth = min(DEPTH, proposer.spec.max_nodes)
    even, source = _filed(target, method, depth), "by the profile of this machine"
    if even is None:
        plain_s = _steps_s(target, load_proposer(PLAIN, target), known)
        drafted_s = _steps_s(target, proposer, known)
        if (apart := max(spread(plain_s), spread(drafted_s))) > UNSTEADY:
            evidence = f"steps of one kind differ by {apart:.0%} here, so what drafting costs cannot be told"
            return Finding("cost", "warn", evidence, "run outrider profile, or this again, while nothing else computes")
        plain, drafted = median(plain_s), median(drafted_s)
        even, source = drafted / plain, f"timed here, {plain * 1e3:.1f} and {drafted * 1e3:.1f} ms a step"
    return break_even(tau, even, depth, source)


def break_even(tau: float, even: float, depth: int, source: str) -> Finding:
    """Return the finding for a break-even tau."""
    evidence = f"a draft of {depth} needs tau {even:.2f} to pay with one request ({source}); it has {tau:.2f}"
    if tau < even:
        remedy = "draft fewer tokens (num_nodes), or let `outrider tune` choose: plain decoding is faster than this"
        return Finding("cost", "warn", evidence, remedy)
    return Finding("cost", "ok", f"{evidence}: about {tau / even:.2f} times plain decoding")


def _filed(target: Target, method: str, depth: int) -> float | None:
    """Return the break-even tau by the profile of this target and machine; None without one."""
    path = profile_path(identity_of(target))
    if not path.is_file():
        return None
    try:
        costs = CostFile.read(path)
    except RunError:
        return None
    drafts = measured(method, costs.drafts)
    if drafts is None:
        return None
    plain = costs.drafts.get(PLAIN, FreeDrafts())

    def step_s(rows: int, propose_s: float) -> float:
        table = costs.target
        return table.forward_s(1, rows, CONTEXT) + table.accept_s(1, rows, True) + table.rest_s(1) + propose_s

    return step_s(1 + depth, drafts.propose_s(1, depth, depth)) / step_s(1, plain.propose_s(1, 0, 0))


def spread(seconds: Sequence[float]) -> float:
    """Return how far the middle half of some times is apart, as a share of their median.

    >>> spread([2.0, 3.0, 4.0, 5.0, 6.0])
    0.5
    """
    low, middle, high = quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle


def _steps_s(target: Target, proposer: Proposer, known: Known) -> Sequence[float]:
    """Return the seconds of steps, over the two shortest prompts, one at a time."""
    prompts = sorted((text.known.prompt for text in known.texts), key=len)[:2]
    steps: list[float] = []

    def record(one: StepRecord | PrefillRecord) -> None:
        if isinstance(one, StepRecord):
            steps.append(one.total_s)

    engine = Engine(target, proposer, max_batch=1, max_len=known.max_len, record=record)
    engine.generate([list(prompt) for prompt in prompts], SamplingParams(max_tokens=TOKENS))
    return _steady(steps)


def _steady(steps: Sequence[float]) -> Sequence[float]:
    """Drop the first steps, in which kernels are recorded."""
    return steps[3:] if len(steps) > 8 else steps
