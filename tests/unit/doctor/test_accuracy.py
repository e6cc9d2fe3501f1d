"""Accuracy along known texts, and the comparison of two drafters, against sums by hand."""

import math

import pytest

from outrider.doctor.accuracy import Accuracy, z_score
from outrider.params import SamplingParams
from outrider.tuning.replays.known import KnownText
from outrider.tuning.replays.replay import Reach
from outrider.tuning.replays.texts import Text


def accuracy(*rights: list[int], depth: int = 2) -> Accuracy:
    texts, reaches = [], {}
    for number, right in enumerate(rights):
        text = Text(f"t{number}", 0, KnownText((1,), tuple(range(len(right)))), SamplingParams())
        texts.append(text)
        reaches[text.key] = Reach(tuple([depth] * len(right)), tuple(right))
    return Accuracy(reaches, texts, depth)


def test_shares_by_depth_are_those_counted_by_hand() -> None:
    # the last `depth` positions, whose chains the end of the answer cuts, are left out
    found = accuracy([2, 0, 1, 0, 1, 0])
    assert found.rights == [[2, 0, 1, 0]]
    assert found.accepted == (0.5, 0.25)
    assert found.mean_accepted == 0.75
    first, second = found.depths
    assert (first.count, first.own, first.taught) == (4, 0.5, 0.5)
    # depth 2 is reached from positions 0 and 2; their first guesses one token later, at 1 and 3, are both wrong
    assert (second.count, second.own, second.taught) == (2, 0.5, 0.0)


def test_tau_walks_on_from_where_a_draft_ended() -> None:
    # 2 + 1 tokens from position 0, then 0 + 1 from 3, then 1 + 1 from 4: six tokens in three steps
    assert accuracy([2, 0, 1, 0, 1, 0]).tau == 2.0


def test_z_is_the_difference_over_its_error_in_blocks() -> None:
    # 18 positions in blocks of eight: sums 8, 8 and 2, whose mean is 6 and whose standard deviation is sqrt(12)
    better, worse = accuracy([1] * 20, depth=2), accuracy([0] * 20, depth=2)
    assert z_score(better, worse) == pytest.approx(6 / math.sqrt(12 / 3))
    assert z_score(worse, better) == -z_score(better, worse)
    assert z_score(better, better) == 0.0


def test_one_lucky_place_is_no_evidence() -> None:
    lucky = accuracy([0] * 10 + [2] + [0] * 9)
    assert z_score(lucky, accuracy([0] * 20)) == 1.0
