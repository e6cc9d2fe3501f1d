"""Equality of the texts of two units, answer by answer.

Where two answers of a conversation part, its later turns have other prompts, and are left out. A serving engine's
method is compared with that engine's own plain decoding: both round alike but for the number of rows in a pass, so in
bf16 a text may still leave at a near tie. Equality is counted here, and explained nowhere: nobody can look into a
server at the tokens' margins.

Example: answers of 10 and 8 tokens, the first equal, the second different from its fourth token on: 1 of 2 are equal,
and the share is (1 + 3/8) / 2 = 0.69.
"""

from collections.abc import Iterable, Sequence
from statistics import mean

from outrider.results.equality.verdict import Verdict, first_difference
from outrider.results.rows import Equality, Lossless
from outrider.results.unit import UnitResult

__all__ = ["equal_share", "equality_of", "summarize_verdicts"]


def equality_of(pairs: Iterable[tuple[UnitResult, UnitResult]]) -> Equality | None:
    """Compare units with the plain units that answered the same prompts; return None without pairs."""
    shares = [share for own, plain in pairs for share in _shares(own, plain)]
    if not shares:
        return None
    return Equality(num_answers=len(shares), num_equal=shares.count(1.0), equal_share=mean(shares))


def equal_share(theirs: Sequence[int], ours: Sequence[int]) -> float:
    """Return the part of the longer text that comes before the first difference."""
    position = first_difference(ours, theirs)
    return 1.0 if position is None else position / max(len(ours), len(theirs))


def _shares(own: UnitResult, plain: UnitResult) -> list[float]:
    want = {(answer.conversation, answer.turn): answer.tokens for answer in plain.answers}
    shares, parted = [], set()
    for answer in sorted(own.answers, key=lambda answer: answer.turn):
        key = (answer.conversation, answer.turn)
        if answer.conversation in parted or key not in want:
            continue
        shares.append(equal_share(answer.tokens, want[key]))
        if shares[-1] < 1:
            parted.add(answer.conversation)
    return shares


def summarize_verdicts(verdicts: Sequence[Verdict], names: Sequence[str] | None = None) -> Lossless:
    """Return the verdict on a cell: its worst answer's, with counts. No verdicts at all are "unverified".

    Args:
        names: names of the answers, to say where the first violation is.
    """
    if not verdicts:
        return Lossless()
    kinds = [verdict.kind for verdict in verdicts]
    first = kinds.index("violation") if "violation" in kinds else None
    return Lossless(
        verdict="ties" if first is None and "tie" in kinds else "exact" if first is None else "violated",
        ties=kinds.count("tie"),
        violations=kinds.count("violation"),
        num_compared=sum(verdict.num_compared for verdict in verdicts),
        num_skipped=sum(verdict.num_skipped for verdict in verdicts),
        where=None if first is None else _place(verdicts[first], names[first] if names else f"answer {first}"),
    )


def _place(verdict: Verdict, name: str) -> str:
    if verdict.noise is None:
        return f"{name}, token {verdict.position}: one of the answers ended early"
    margin = "cut off by a filter" if verdict.margin is None else f"margin {verdict.margin:.3g}"
    return f"{name}, token {verdict.position}: {margin}, noise {verdict.noise:.3g}"
