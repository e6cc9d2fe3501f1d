"""The speedup of a method, from what its steps cost and what they bring.

    speedup        = tau * plain step / step
    step           = propose + forward + accept + rest
    break_even_tau = step / plain step                      below this tau the method loses

In a batch of B slots of which each drafts with probability c (the coverage), the number that drafts is binomial, and a
step's time is the mean over that number, not the time of the mean:

    forward = sum_k Binomial(k; B, c) * forward_s(B, B + k * nodes, context)

Verification reads a row of every slot, and one more for every accepted node, at most the rows:

    accept = sum_k Binomial(k; B, c) * accept_s(B, B + k * accepted)

`best` takes the number of nodes with the largest speedup; 0 is plain decoding. The *crossover* is the first batch size
from which on not even one node pays.

Worked example: a plain step takes 10 ms, a forward with three nodes 12 ms, drafting them 2 ms, tau is 2.1: a step of
14 ms is worth 21 ms of plain decoding, a speedup of 1.5. Waterfall: 2.1, 1.75 (verify), 1.5 (draft).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Final, NamedTuple, final

from outrider.costs.tables import DraftCosts, TargetCosts
from outrider.planning.acceptance_profile import EMPTY, AcceptanceProfile, DraftShape
from outrider.planning.config import LARGEST_BATCH
from outrider.results.rows import Waterfall

__all__ = ["FreeDrafts", "Method", "Prediction", "Setting", "StepTime", "best", "crossover", "predict", "step_time"]

NUM_EXACT_SLOTS: Final = 64
"""Up to here the number of drafting slots is a distribution; in larger batches it hardly varies."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of a step.

    context      committed tokens per slot
    num_tokens   tokens of each answer; None for answers so long that their ends do not matter
    """

    num_slots: int = 1
    context: float = 512.0
    greedy: bool = True
    num_tokens: int | None = None


@final
class FreeDrafts(DraftCosts):
    """A proposer that takes no time: plain decoding's, and the limit of a lookup's."""

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return 0.0


class Method(NamedTuple):
    """Acceptance and costs of a method's drafts."""

    acceptance: AcceptanceProfile
    drafts: DraftCosts


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step, by part."""

    verify_s: float
    propose_s: float
    accept_s: float
    rest_s: float

    @property
    def total_s(self) -> float:
        return self.verify_s + self.propose_s + self.accept_s + self.rest_s


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expectation for drafts of up to `num_nodes` nodes and `depth` levels; 0 is plain decoding."""

    num_nodes: int
    depth: int
    tau: float
    step: StepTime
    plain: StepTime
    num_slots: int

    @property
    def speedup(self) -> float:
        return self.tau / self.break_even_tau

    @property
    def break_even_tau(self) -> float:
        return self.step.total_s / self.plain.total_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all slots together."""
        return self.num_slots * self.tau / self.step.total_s

    @property
    def waterfall(self) -> Waterfall:
        """tau with one cost after another: free drafts, the larger forward, drafting, everything else."""
        plain, more_verify = self.plain.total_s, self.step.verify_s - self.plain.verify_s
        drafted = plain + more_verify + self.step.propose_s - self.plain.propose_s
        return Waterfall(
            ideal=self.tau,
            with_verify=self.tau * plain / (plain + more_verify),
            with_draft=self.tau * plain / drafted,
            with_host=self.speedup,
            measured=None,
        )


def step_time(target: TargetCosts, drafts: DraftCosts, shape: DraftShape, setting: Setting) -> StepTime:
    """Return the mean step of a batch in which every slot drafts like this."""
    slots = setting.num_slots

    accepted = min(shape.num_nodes, sum(shape.reached))

    def mean(cost_s: Callable[[float], float]) -> float:
        return sum(share * cost_s(drafting) for drafting, share in _drafting(slots, shape.coverage))

    return StepTime(
        verify_s=mean(lambda some: target.forward_s(slots, slots + some * shape.num_nodes, setting.context)),
        propose_s=mean(lambda some: drafts.propose_s(slots, some * shape.num_nodes, shape.depth)),
        accept_s=mean(lambda some: target.accept_s(slots, slots + some * accepted, setting.greedy)),
        rest_s=target.rest_s(slots),
    )


def predict(
    target: TargetCosts, method: Method, setting: Setting, num_nodes: int, plain: DraftCosts | None = None
) -> Prediction:
    """Predict the best draft of at most `num_nodes` nodes, over the depths it may have.

    Args:
        plain: costs of plain decoding's own proposer; nothing by default.
    """
    base = step_time(target, plain or FreeDrafts(), EMPTY, setting)
    if num_nodes == 0:
        return Prediction(num_nodes=0, depth=0, tau=1.0, step=base, plain=base, num_slots=setting.num_slots)
    found = []
    for depth in method.acceptance.depths(num_nodes):
        shape = method.acceptance.draft(num_nodes, depth)
        found.append(
            Prediction(
                num_nodes=num_nodes,
                depth=shape.depth,
                tau=shape.tau if setting.num_tokens is None else shape.tau_of(setting.num_tokens),
                step=step_time(target, method.drafts, shape, setting),
                plain=base,
                num_slots=setting.num_slots,
            )
        )
    return best(found)


def best(predictions: Iterable[Prediction]) -> Prediction:
    """Return the largest speedup; of equals, the fewest nodes."""
    return max(predictions, key=lambda one: (one.speedup, -one.num_nodes, -one.depth))


def crossover(pays: Callable[[int], bool], limit: int = LARGEST_BATCH) -> int | None:
    """Return the first batch size from which on speculation does not pay; None if it still pays at `limit`.

    Batches 1, 2, 4, .. are asked; between the last that pays and the next, the answer is found by bisection.
    """
    asked = [1 << power for power in range(limit.bit_length()) if 1 << power <= limit]
    paying = [batch for batch in asked if pays(batch)]
    if not paying:
        return 1
    low, high = paying[-1], 2 * paying[-1]
    if high > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return high


def _drafting(num_slots: int, coverage: float) -> Sequence[tuple[float, float]]:
    """Return the numbers of slots that may draft, each with its probability."""
    if coverage in (0.0, 1.0) or num_slots > NUM_EXACT_SLOTS:
        return [(num_slots * coverage, 1.0)]
    return [
        (count, comb(num_slots, count) * coverage**count * (1 - coverage) ** (num_slots - count))
        for count in range(num_slots + 1)
    ]
