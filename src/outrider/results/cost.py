"""The cost of a step in plain forwards, and the speedup that it predicts.

Let u be the time of a plain forward: the median `verify_s` of plain decoding's one-row steps with the same number of
running slots. Single steps on a shared machine are outliers, so steps of one shape (slots, rows) count with their
median; shapes are averaged by how often they ran. In units of u,

    v     verifying a step's rows
    c     the proposer's work, over all steps, with or without a draft
    o     accepting, committing and the host; o_0 is all that plain decoding spends besides its forwards

    break_even_tau    = (v + c + o) / (1 + o_0)       a step in plain steps: below this tau the method loses
    predicted_speedup = tau / break_even_tau

The waterfall starts with free costs (v = 1, c = 0, o = o_0) and puts in the measured ones, one at a time.

Worked example: tau = 2.4, v = 1.2, c = 0.1, o = o_0 = 0.1. A step costs 1.4 / 1.1 = 1.27 plain ones, so 1.89x is
predicted; the waterfall is 2.4, then 2.03 (verify), 1.89 (draft), 1.89 (host), and then what was measured.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from outrider.metrics import StepRecord
from outrider.results.rows import Waterfall

__all__ = ["StepCost", "plain_forward_s", "step_cost"]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The parts of an average step in plain forwards; `plain_overhead` is o_0."""

    verify: float
    draft: float
    overhead: float
    plain_overhead: float

    @property
    def break_even_tau(self) -> float:
        return (self.verify + self.draft + self.overhead) / (1 + self.plain_overhead)

    def waterfall(self, tau: float, measured: float | None) -> Waterfall:
        """Return tau with one cost after another."""
        plain = 1 + self.plain_overhead
        return Waterfall(
            ideal=tau,
            with_verify=tau * plain / (self.verify + self.plain_overhead),
            with_draft=tau * plain / (self.verify + self.draft + self.plain_overhead),
            with_host=tau / self.break_even_tau,
            measured=measured,
        )


def plain_forward_s(plain: Sequence[StepRecord]) -> Mapping[int, float]:
    """Return u in seconds, by the number of running slots, from the one-row steps of plain decoding."""
    by_slots: dict[int, list[float]] = defaultdict(list)
    for step in plain:
        if step.num_rows == 1:
            by_slots[len(step.slots)].append(step.verify_s)
    return {slots: median(seconds) for slots, seconds in by_slots.items()}


def step_cost(steps: Sequence[StepRecord], plain: Sequence[StepRecord]) -> StepCost | None:
    """Return the cost of an average step; None without steps or without plain steps to compare with."""
    forward_s = plain_forward_s(plain)
    if not steps or not forward_s or not all(forward_s.values()):
        return None
    return StepCost(
        verify=_in_forwards(steps, forward_s, lambda step: step.verify_s),
        draft=_in_forwards(steps, forward_s, lambda step: step.propose_s),
        overhead=_in_forwards(steps, forward_s, lambda step: step.accept_s + step.commit_s + step.host_s),
        plain_overhead=_in_forwards(plain, forward_s, lambda step: step.total_s - step.verify_s),
    )


def _in_forwards(
    steps: Sequence[StepRecord], forward_s: Mapping[int, float], seconds: Callable[[StepRecord], float]
) -> float:
    by_shape: dict[tuple[int, int], list[float]] = defaultdict(list)
    for step in steps:
        by_shape[len(step.slots), step.num_rows].append(seconds(step))
    spent = sum(len(values) * median(values) for values in by_shape.values())
    return spent / sum(len(values) * _nearest_forward_s(forward_s, slots) for (slots, _), values in by_shape.items())


def _nearest_forward_s(forward_s: Mapping[int, float], slots: int) -> float:
    """Return the forward of that number of slots, or of the nearest that plain decoding ran with."""
    return forward_s[min(forward_s, key=lambda other: (abs(other - slots), other))]
