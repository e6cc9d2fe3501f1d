"""The search for causes: variants of a checkpoint that fit the target's texts better than it does as it is.

Every variant is scored along the texts by its likelihood (`outrider.doctor.likelihood`) and paired with the checkpoint.
One that gains by more than chance, and is not accepted less often, is a cause. The best is kept, and the search goes on
on top of it, since two things may be wrong.

    gain surely above 0        a cause
    two gain alike             a cause, and the finding names both: which one it is cannot be told
    gain neither above nor below 0   undecided: these texts cannot tell the two readings apart

A checkpoint that does not load has no likelihood; then the variant that loads and has the most is the cause.

Example: a head whose layer ids are too low by one gains 0.1 nats per position with the right ones.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Final, NamedTuple

from outrider.doctor.accuracy import Accuracy, z_score
from outrider.doctor.finding import Finding, Level
from outrider.doctor.likelihood import Gain, Likelihood, gain
from outrider.doctor.trial import Known, Trials, swapped
from outrider.doctor.variant import Variant
from outrider.doctor.written import HOPELESS

__all__ = ["Cause", "Search", "Tried", "cause_finding", "search", "states_finding", "undecided_findings"]

SURE_Z: Final = 3.5
"""Standard errors that a blind variant must gain: of some thirty variants, chance lets none through."""
EXPECTED_Z: Final = 2.5
"""The same for a variant that the target or the file suggests."""
LEAST_GAIN: Final = 0.01
"""Nats per position below which a gain is a trifle."""
APART_Z: Final = 2.0
"""Standard errors from which on two readings are told apart."""
SAME: Final = Gain(0.0, 0.0)
"""The gain of a reading that changes nothing."""
STATES: Final = "target's states"
MOST_ROUNDS: Final = 3
Listen = Callable[[float, float | None, str], None]


class Tried(NamedTuple):
    """A variant, its likelihood, and its gain over the reading before; None if that did not load."""

    variant: Variant
    likelihood: Likelihood
    gain: Gain | None


class Cause(NamedTuple):
    """A variant that is better, the accuracy without and with it, and variants that gain as much."""

    variant: Variant
    gain: Gain | None
    before: Accuracy | None
    after: Accuracy
    rivals: tuple[Variant, ...]


class Search(NamedTuple):
    """The result: causes, the best first, each on top of those before it, and what is undecided."""

    causes: tuple[Cause, ...]
    undecided: tuple[Tried, ...]


def search(
    trials: Trials,
    variants: Sequence[Variant],
    known: Known,
    base: Accuracy | None,
    kept: Sequence[Variant],
    listen: Listen = lambda done, total, words: None,
) -> Search:
    """Find the causes among these variants.

    Args:
        base: accuracy of the checkpoint as it is; None if it does not load.
        kept: changes that every trial has.
    """
    score = None
    if base is not None:
        score = trials.likelihood(known, kept)
        if score is None:
            return Search((), ())
    causes: list[Cause] = []
    tried: list[Tried] = []
    for _ in range(MOST_ROUNDS):
        settled = {cause.variant.check for cause in causes}
        open_variants = [one for one in variants if one.check not in settled]
        changes = [*kept, *(cause.variant for cause in causes)]
        tried = list(_tried(trials, open_variants, known, score, changes, listen))
        found = _best(trials, tried, known, base, changes)
        if found is None:
            break
        cause, score = found
        causes.append(cause)
        base = cause.after
    settled = {cause.variant.check for cause in causes}
    return Search(tuple(causes), tuple(one for one in tried if one.variant.check not in settled and _is_undecided(one)))


def _tried(
    trials: Trials,
    variants: Sequence[Variant],
    known: Known,
    base: Likelihood | None,
    kept: Sequence[Variant],
    listen: Listen,
) -> Iterator[Tried]:
    """Yield the variants that load, with their gains."""
    for number, variant in enumerate(variants):
        listen(number, len(variants), f"trying {variant.check}")
        found = trials.likelihood(known, [*kept, variant])
        if found is not None:
            yield Tried(variant, found, None if base is None else gain(found, base))


def _best(
    trials: Trials, tried: Sequence[Tried], known: Known, base: Accuracy | None, kept: Sequence[Variant]
) -> tuple[Cause, Likelihood] | None:
    """Return the best of the variants that are surely better, and its likelihood."""
    better = sorted(
        filter(_is_sure, tried),
        key=lambda one: one.likelihood.nats if one.gain is None else one.gain.nats,
        reverse=True,
    )
    while better:
        first = reduce(_likelier, better)
        alike = [one for one in better if _is_alike(one.likelihood, first.likelihood)]
        best = next((one for one in alike if one.variant.is_expected), first)
        after = trials.accuracy(known, [*kept, best.variant])
        if after is not None and (base is None or _is_accepted(after, base)):
            rivals = [one.variant for one in alike if gain(one.likelihood, best.likelihood) != SAME]
            return Cause(best.variant, best.gain, base, after, tuple(rivals)), best.likelihood
        better.remove(best)
    return None


def _likelier(one: Tried, other: Tried) -> Tried:
    """Return the one that gains on the other: both may gain as much as a position counts on what is wrong."""
    return other if gain(other.likelihood, one.likelihood).z >= APART_Z else one


def _is_accepted(after: Accuracy, base: Accuracy) -> bool:
    """Return whether no fewer guesses are right, as far as both draft; and enough, where hardly any was.

    A hopeless drafter that is less sure of its wrong guesses has a better likelihood, and is no better.
    """
    depth = min(after.depth, base.depth)
    is_still_hopeless = max(base.accepted[0], after.accepted[0]) < HOPELESS
    return not is_still_hopeless and z_score(after.within(depth), base.within(depth)) >= -APART_Z


def _is_sure(one: Tried) -> bool:
    if one.gain is None:
        return True
    return one.gain.nats >= LEAST_GAIN and one.gain.z >= (EXPECTED_Z if one.variant.is_expected else SURE_Z)


def _is_alike(one: Likelihood, other: Likelihood) -> bool:
    return abs(gain(one, other).z) < APART_Z


def _is_undecided(one: Tried) -> bool:
    """Return whether a variant may be as right as the present reading; one that changes nothing is no question."""
    return one.gain is not None and one.gain.error > 0 and one.gain.z > -APART_Z


def cause_finding(cause: Cause) -> Finding:
    """Say what is wrong, the evidence and the remedy."""
    variant, before, after = cause.variant, cause.before, cause.after
    shares = [f"{one.accepted[0]:.1%}" if one is not None else "none (it does not load)" for one in (before, after)]
    evidence = f"{variant.now}; with {variant.instead}, right first guesses go from {shares[0]} to {shares[1]}"
    if before is not None:
        evidence += f", tau from {before.tau:.2f} to {after.tau:.2f}"
    if cause.gain is not None:
        evidence += f", and the texts are likelier by {_nats(cause.gain)}"
    if cause.rivals:
        evidence += f"; not told apart from it: {'; '.join(one.instead for one in cause.rivals)}"
    return Finding(variant.check, "problem", evidence, variant.remedy)


def states_finding(trials: Trials, known: Known, kept: Sequence[Variant]) -> Finding | None:
    """Say whether the drafter has learnt to read this target's states; None if it reads none.

    What has, predicts a text far better from the text's own states than from those of another one.
    """
    layers = trials.load(kept).spec.feature_layers
    own = trials.likelihood(known, kept) if layers else None
    others = None if own is None else trials.likelihood(swapped(trials.target, known, layers), kept)
    if own is None or others is None:
        return None
    won = gain(own, others)
    evidence = f"from the target's states the texts are likelier by {_nats(won)} than from those of other texts"
    if won.z >= SURE_Z:
        return Finding(STATES, "ok", evidence)
    remedy = "load it with its own target, or train one for this target (outrider train)"
    return Finding(
        STATES,
        "problem",
        f"{evidence}: it was trained for another target, or something that is not tried here is wrong",
        remedy,
    )


def undecided_findings(undecided: Sequence[Tried]) -> list[Finding]:
    """Say which readings these texts cannot tell from the present one: a warning where something speaks for another."""
    found = []
    levels: dict[Level, list[Tried]] = {
        "warn": [one for one in undecided if _is_likely(one)],
        "ok": [one for one in undecided if not _is_likely(one)],
    }
    for level, some in levels.items():
        if some:
            told = "; ".join(
                f"{one.variant.now}, or {one.variant.instead} ({_nats(one.gain)})" for one in some if one.gain
            )
            remedy = "give more --prompts, or longer answers (--max-new-tokens)" if level == "warn" else ""
            found.append(Finding("undecided", level, f"these texts do not tell apart: {told}", remedy))
    return found


def _is_likely(one: Tried) -> bool:
    """Return whether something speaks for an undecided variant: the target, the file, or a gain."""
    return one.variant.is_expected or (one.gain is not None and one.gain.z >= APART_Z)


def _nats(one: Gain) -> str:
    return f"{one.nats:+.3f} ± {one.error:.3f} nats per token"
