"""The sentence at the end: use this, or leave it off.

Use eagle3:num_nodes=3 with --budget auto: 1.61 times the speed at 1 request, 1.18 at 4, 1.00 at 16 of plain
decoding; off from 16 requests on.
Leave it off: the best that was found, ngram:num_nodes=3 with --budget fixed, is 0.98 times the speed at 1 request
of plain decoding, which is not worth it.
"""

from collections.abc import Sequence

from outrider.costs.tuned import TunedSpeedup
from outrider.results.rows import PLAIN
from outrider.tuning.outcome.decide import Decision

__all__ = ["requests_text", "sentence_of", "speedups_text"]


def sentence_of(decision: Decision, *, is_prediction: bool, hardware: str | None = None) -> str:
    """Return the decision in one sentence."""
    where = f"Predicted for {hardware}: " if hardware else "Predicted, not verified: " if is_prediction else ""
    if decision.best.text == PLAIN:
        return f"{where}Leave it off: nothing that drafts could be measured."
    speedups = speedups_text(decision.speedups)
    budget = f" with --budget {decision.best.budget}"
    if decision.choice != decision.best:
        return (
            f"{where}Leave it off: the best that was found, {decision.best.text}{budget}, is {speedups} of plain "
            "decoding, which is not worth it."
        )
    off = "" if decision.off_from is None else f"; off from {requests_text(decision.off_from)} on"
    return f"{where}Use {decision.choice.text}{budget}: {speedups} of plain decoding{off}."


def speedups_text(speedups: Sequence[TunedSpeedup]) -> str:
    """Return speedups in words.

    >>> speedups_text([TunedSpeedup(concurrency=1, point=1.6, low=None, high=None)])
    '1.60 times the speed at 1 request'
    """
    first, *others = speedups
    rest = [f"{one.point:.2f} at {one.concurrency}" for one in others]
    return ", ".join([f"{first.point:.2f} times the speed at {requests_text(first.concurrency)}", *rest])


def requests_text(count: int) -> str:
    """Return a number of requests in words."""
    return f"{count} request{'s' if count != 1 else ''}"
