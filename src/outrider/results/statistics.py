"""Figures with their uncertainty: paired speedups with intervals, percentiles, total ratios.

Times on a shared machine drift, so baseline and method run side by side, prompt by prompt and repeat by repeat, and are
compared pair by pair. With b and m the seconds of prompt p in repeat r,

    d_p     = median_r log(b_pr / m_pr)          the drift of repeat r is in both and cancels
    speedup = exp(mean_p d_p)                    the geometric mean over prompts

and the interval comes from the bootstrap over prompts (Efron 1979): draw P prompts with replacement, take the mean of
their d, repeat 10,000 times, read off percentiles. With few prompts the plain percentiles are too narrow, by the factor
sqrt((P-1)/P) and for want of Student's t; we read wider ones, Phi(-sqrt(P/(P-1)) t_{2.5%,P-1}) in place of 2.5 %
(the expanded percentile interval of Hesterberg, arXiv 1411.5279).

Logarithms make the figure fair: swapping baseline and method gives exactly the reciprocal, and a 2x and a 0.5x prompt
average to 1x. Worked example: times (2, 2) against (1, 4) are ratios 2 and 0.5, so the speedup is 1; the total ratio,
which lets long prompts weigh more, is 4 / 5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from outrider.errors import RunError

__all__ = ["Interval", "Percentiles", "paired_speedup", "percentiles", "total_ratio"]

Times = Sequence[Sequence[float]]
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its interval; the ends are None where one prompt alone was measured."""

    point: float
    low: float | None
    high: float | None

    @property
    def inverse(self) -> "Interval":
        """The same comparison the other way round."""
        low, high = self.low, self.high
        return Interval(point=1 / self.point, low=1 / high if high else None, high=1 / low if low else None)


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Half, 95 and 99 of 100 values lie at or below these."""

    p50: float
    p95: float
    p99: float


def paired_speedup(
    baseline_s: Times, method_s: Times, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return how many times faster the method is, as a geometric mean over prompts.

    Args:
        baseline_s: seconds [prompts][repeats] for some work; repeats of a prompt ran side by side with the method's.
        method_s: seconds of the method for the same work, of the same shape.

    Raises:
        RunError: if there is nothing to compare, the shapes differ, or a time is not positive.
    """
    logs_P = _log_ratios(baseline_s, method_s)
    point = float(logs_P.mean())
    if len(logs_P) == 1:
        return Interval(point=math.exp(point), low=None, high=None)
    draws_NP = np.random.default_rng(seed).integers(0, len(logs_P), (resamples, len(logs_P)))
    tail = _expanded_tail(len(logs_P), (1 - confidence) / 2)
    low, high = np.quantile(logs_P[draws_NP].mean(1), (tail, 1 - tail))
    # Equal values may differ from their own mean in the last bit.
    return Interval(point=math.exp(point), low=math.exp(min(float(low), point)), high=math.exp(max(float(high), point)))


def total_ratio(baseline_s: Times, method_s: Times) -> float:
    """Return the total seconds of the baseline over total seconds of the method; long prompts weigh more.

    Raises:
        RunError: as `paired_speedup`.
    """
    _log_ratios(baseline_s, method_s)
    return sum(map(sum, baseline_s)) / sum(map(sum, method_s))


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Return p50, p95 and p99, interpolated linearly; None for no values."""
    if not values:
        return None
    p50, p95, p99 = np.quantile(np.asarray(values, dtype=np.float64), (0.5, 0.95, 0.99))
    return Percentiles(p50=float(p50), p95=float(p95), p99=float(p99))


def _log_ratios(baseline_s: Times, method_s: Times) -> npt.NDArray[np.float64]:
    """Return for each prompt the median over repeats of log(baseline / method)."""
    shapes = [len(times) for times in baseline_s], [len(times) for times in method_s]
    if shapes[0] != shapes[1]:
        raise RunError(f"baseline and method have different prompts or repeats: {shapes[0]} and {shapes[1]}")
    if not baseline_s or 0 in shapes[0]:
        raise RunError("there is no pair of times to compare; run the baseline and the method on the same prompts")
    for seconds in (seconds for times in (*baseline_s, *method_s) for seconds in times):
        if not (0 < seconds < math.inf):
            raise RunError(f"a measured time is {seconds} s but must be positive and finite")
    pairs = zip(baseline_s, method_s, strict=True)
    return np.array([np.median(np.log(np.asarray(base)) - np.log(np.asarray(own))) for base, own in pairs])


def _expanded_tail(num_prompts: int, tail: float) -> float:
    freedom = num_prompts - 1
    quantile = _student_t(tail, freedom)
    return NormalDist().cdf(quantile * math.sqrt(num_prompts / freedom))


def _student_t(tail: float, freedom: int) -> float:
    """Return the lower `tail` quantile of Student's t, by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(tail)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))
