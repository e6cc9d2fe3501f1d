"""The search on scripted likelihoods: what is a cause, what is undecided, and what is neither."""

from types import SimpleNamespace
from typing import Any

import pytest

from outrider.doctor.accuracy import Accuracy
from outrider.doctor.causes import Search, cause_finding, search, undecided_findings
from outrider.doctor.likelihood import Likelihood
from outrider.doctor.variant import Variant
from outrider.params import SamplingParams
from outrider.tuning.replays.known import KnownText
from outrider.tuning.replays.replay import Reach
from outrider.tuning.replays.texts import Text

POSITIONS = 64


def accuracy(share: int) -> Accuracy:
    """Chains of one guess, right at `share` of every eight positions."""
    right = tuple(int(place % 8 < share) for place in range(POSITIONS + 1))
    text = Text("t", 0, KnownText((1,), tuple(range(POSITIONS + 1))), SamplingParams())
    return Accuracy({text.key: Reach((1,) * len(right), right)}, [text], 1)


def likelihood(block_gains: list[float]) -> Likelihood:
    """Eight blocks of eight positions; each position of a block has the same score."""
    return Likelihood([[[-2.0 + gain / 8] for gain in block_gains for _ in range(8)]])


def variant(name: str, check: str = "rope", is_expected: bool = False) -> Variant:
    return Variant(check=check, now="now", instead=name, remedy=f"use {name}", is_expected=is_expected)


BASE = [0.0] * 8
SURE = [0.8, 0.9, 1.0, 1.1, 0.8, 0.9, 1.0, 1.1]  # mean 0.95, error 0.043: 22 standard errors
FAINT = [1.0, -0.6, 1.2, 0.2, 1.4, -0.4, 1.0, 0.6]  # mean 0.55, standard deviation 0.74, error 0.26: 2.1
LUCK = [1.0, -1.0, 1.2, -1.1, 1.0, -1.0, 1.2, -1.1]  # mean 0.03, error 0.4: 0.1


def searched(
    scores: dict[str, list[float]], variants: list[Variant], shares: dict[str, int] | None = None, base: int = 4
) -> Search:
    """Search among variants whose likelihood and accuracy are written down, by the last change."""

    def name_of(changes: Any) -> str:
        return changes[-1].instead if changes else ""

    trials: Any = SimpleNamespace(
        likelihood=lambda known, changes: likelihood(scores[name_of(changes)]) if name_of(changes) in scores else None,
        accuracy=lambda known, changes: accuracy((shares or {}).get(name_of(changes), 4)),
    )
    known: Any = None
    return search(trials, variants, known, accuracy(base), [])


def test_a_sure_gain_is_a_cause_and_chance_is_undecided() -> None:
    found = searched({"": BASE, "right": SURE, "luck": LUCK}, [variant("luck", "other"), variant("right")])
    assert [one.variant.instead for one in found.causes] == ["right"]
    assert cause_finding(found.causes[0]).remedy == "use right"
    only_luck = searched({"": BASE, "luck": LUCK}, [variant("luck")])
    assert only_luck.causes == ()
    [finding] = undecided_findings(only_luck.undecided)
    assert (finding.level, "luck" in finding.evidence) == ("ok", True)


@pytest.mark.parametrize(("scores", "is_expected"), [(FAINT, False), (FAINT, True), (LUCK, True)])
def test_a_faint_gain_or_an_expected_reading_is_a_warning(scores: list[float], is_expected: bool) -> None:
    found = searched({"": BASE, "faint": scores}, [variant("faint", is_expected=is_expected)])
    assert found.causes == ()
    [finding] = undecided_findings(found.undecided)
    assert (finding.level, "--prompts" in finding.remedy) == ("warn", True)


def test_what_is_accepted_less_often_is_no_cause() -> None:
    found = searched({"": BASE, "surer": SURE}, [variant("surer")], shares={"surer": 0})
    assert found.causes == ()


@pytest.mark.parametrize(("share", "causes"), [(0, 0), (4, 1)])
def test_a_hopeless_drafter_that_is_only_less_sure_is_not_mended(share: int, causes: int) -> None:
    found = searched({"": BASE, "softer": SURE}, [variant("softer")], shares={"softer": share}, base=0)
    assert len(found.causes) == causes


def test_two_that_gain_alike_are_both_named_and_the_expected_one_is_the_remedy() -> None:
    near = [gain - step / 4 for gain, step in zip(SURE, LUCK, strict=True)]  # less by 0.01, with an error of 0.1
    scores = {"": BASE, "blind": SURE, "expected": near}
    found = searched(scores, [variant("blind"), variant("expected", is_expected=True)])
    [cause] = found.causes
    assert cause.variant.instead == "expected"
    assert "not told apart from it: blind" in cause_finding(cause).evidence


def test_of_two_that_gain_all_they_can_the_likelier_one_is_the_cause() -> None:
    # a position counts one nat at most: both gain one on what is wrong, and 0.5 lies between them
    scores = {"": [-40.0] * 8, "good": [-4.0] * 8, "best": SURE}
    for names in (("good", "best"), ("best", "good")):
        [cause] = searched(scores, [variant(name) for name in names]).causes
        assert (cause.variant.instead, cause.rivals) == ("best", ())


def test_a_reading_that_changes_nothing_is_not_mentioned() -> None:
    found = searched({"": BASE, "same": BASE}, [variant("same")])
    assert found == Search((), ())
