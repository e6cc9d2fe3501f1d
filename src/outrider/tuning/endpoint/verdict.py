"""The verdict on a server: use what it does now, leave drafting off, or change to another method.

    plain decoding alone          its speed is measured; methods are predicted along its texts
    drafts, beside plain          its gain is measured; methods are predicted
    drafts, with nothing beside   its gain is unknown: a server that drafts cannot be asked not to. A lookup that
                                  verifies no more rows a step costs no more, so tau over tau is what it gains at least

A prediction must promise `MARGIN` over what is known, for what the engine spends on drafting is not seen.

Worked example: the server's drafts gain 1.10, and prompt lookup is predicted at 1.35: 1.35 / 1.10 is above 1.05, so
change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Final, NamedTuple

from outrider.costs.tuned import TunedSpeedup
from outrider.results.crossover import crossing
from outrider.results.rows import PLAIN
from outrider.results.statistics import Interval
from outrider.tuning.endpoint.facts import NOW
from outrider.tuning.outcome.decide import LEAST_GAIN
from outrider.tuning.outcome.sentence import requests_text, speedups_text
from outrider.tuning.prices.predict import Predicted, score_of

__all__ = ["MARGIN", "Bound", "Verdict", "verdict_of"]

MARGIN: Final = 1.05
REMEDY: Final = "give the same server without speculation as a second --endpoint none=URL"


class Bound(NamedTuple):
    """A method, its tau along the server's texts, and what it gains at least over what the server does now."""

    text: str
    tau: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict.

    method         "served" is what the server does now, "none" plain decoding
    is_prediction  nothing of the method itself was timed
    speedups       over plain decoding; empty where that was not measured
    off_from       requests at once from which on it does not pay
    crossover      the same between the measured numbers, by interpolation
    """

    method: str
    sentence: str
    is_prediction: bool
    speedups: tuple[TunedSpeedup, ...] = ()
    off_from: int | None = None
    crossover: float | None = None


def verdict_of(
    *,
    drafts: bool,
    now: Mapping[int, Interval],
    tau: float | None,
    predicted: Sequence[Predicted],
    bounds: Sequence[Bound],
) -> Verdict:
    """Return the verdict.

    Args:
        drafts: True if the server drafts.
        now: measured speedups of its drafts, by requests at once; empty where they are unknown.
        tau: its tokens a step.
        predicted: methods that the engine can run, the best first.
        bounds: the same, where plain decoding was not measured.
    """
    best = predicted[0] if predicted else None
    if not drafts:
        return _of_plain(best)
    return _of_drafts(now, best) if now else _of_drafts_alone(tau, bounds)


def _of_plain(best: Predicted | None) -> Verdict:
    if best is None:
        return _verdict(PLAIN, "Leave it off: the server does not draft, and no method could be predicted.", True)
    if best.score >= MARGIN:
        return _change(best, "the server does not draft now")
    text = f"the best that was predicted, {best.choice.text}, is {_gains(best.speedups)}, which is not worth it"
    return _verdict(PLAIN, f"Leave it off: the server does not draft, and {text}.", True, best.speedups)


def _of_drafts(now: Mapping[int, Interval], best: Predicted | None) -> Verdict:
    points = {batch: interval.point for batch, interval in sorted(now.items())}
    if best is not None and best.score >= MARGIN * max(score_of(points), 1.0):
        return _change(best, f"what the server does now is {_gains(points)}")
    if score_of(points) < LEAST_GAIN:
        text = f"Leave it off: what the server does now is {_gains(points)}, which is not worth it."
        return _verdict(PLAIN, text, False, points, now)
    return _verdict(NOW, f"Use what the server does now: {_gains(points)}{_off(points)}.", False, points, now)


def _of_drafts_alone(tau: float | None, bounds: Sequence[Bound]) -> Verdict:
    best = max(bounds, key=lambda bound: bound.gain, default=None)
    if best is not None and best.gain >= MARGIN:
        text = (
            f"Change to {best.text}: predicted, not verified, at least {best.gain:.2f} times the speed of what the "
            f"server does now, with {best.tau:.2f} tokens a step; what it gains over plain decoding is unknown, "
            f"so {REMEDY}."
        )
        return _verdict(best.text, text, True)
    pays = "" if tau is None else f" its drafts pay while a step costs less than {tau:.2f} plain ones;"
    text = (
        f"Keep what the server does now, unproven:{pays} plain decoding cannot be measured on a server that drafts, "
        f"so {REMEDY}."
    )
    return _verdict(NOW, text, False)


def _change(best: Predicted, now: str) -> Verdict:
    gains = f"predicted, not verified, {_gains(best.speedups)}{_off(best.speedups)}"
    return _verdict(best.choice.text, f"Change to {best.choice.text}: {gains}; {now}.", True, best.speedups)


def _verdict(
    method: str,
    sentence: str,
    is_prediction: bool,
    points: Mapping[int, float] | None = None,
    intervals: Mapping[int, Interval] | None = None,
) -> Verdict:
    """Return a verdict with its speedups by requests at once, and their intervals where they were measured."""
    if not points:
        return Verdict(method=method, sentence=sentence, is_prediction=is_prediction)
    batches = sorted(points)
    crossover = crossing(batches, [points[batch] for batch in batches])
    return Verdict(
        method=method,
        sentence=sentence,
        is_prediction=is_prediction,
        speedups=_told(points, intervals or {}),
        off_from=_off_from(points),
        crossover=None if isinf(crossover) else crossover,
    )


def _told(points: Mapping[int, float], intervals: Mapping[int, Interval]) -> tuple[TunedSpeedup, ...]:
    nothing = Interval(point=1.0, low=None, high=None)
    known = {batch: intervals.get(batch, nothing) for batch in sorted(points)}
    return tuple(
        TunedSpeedup(concurrency=batch, point=points[batch], low=interval.low, high=interval.high)
        for batch, interval in known.items()
    )


def _gains(points: Mapping[int, float]) -> str:
    return f"{speedups_text(_told(points, {}))} of plain decoding"


def _off(points: Mapping[int, float]) -> str:
    losing = _off_from(points)
    return "" if losing is None else f"; off from {requests_text(losing)} on"


def _off_from(points: Mapping[int, float]) -> int | None:
    """Return the number of requests from which on it loses everywhere."""
    losing = [batch for batch in sorted(points) if all(points[more] <= 1.0 for more in points if more >= batch)]
    return losing[0] if losing else None
