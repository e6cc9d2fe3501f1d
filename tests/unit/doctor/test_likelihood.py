"""Likelihood along known texts: scores against the target's own, and the paired test against sums by hand."""

import math

import pytest
import torch

from outrider.doctor.likelihood import FLOOR, Gain, Likelihood, gain, likelihood
from outrider.params import SamplingParams
from outrider.proposers.draft_model import DraftModelConfig, DraftModelProposer, cut_from
from outrider.testing import tiny_target
from outrider.tuning.replays.known import KnownText, ReplayTarget
from outrider.tuning.replays.texts import Text


def scores(*values: float) -> Likelihood:
    return Likelihood([[[value] for value in values]])


def test_a_gain_is_the_difference_over_its_error_in_blocks() -> None:
    # 18 positions in blocks of eight gain 0.5 each: sums 4, 4 and 1, mean 3, standard deviation sqrt(3)
    found = gain(scores(*[-0.5] * 18), scores(*[-1.0] * 18))
    assert found.nats == pytest.approx(0.5)
    assert found.z == pytest.approx(3 / math.sqrt(3 / 3))
    assert gain(scores(*[-1.0] * 18), scores(*[-1.0] * 18)) == Gain(0.0, 0.0)


def test_one_surprise_counts_one_nat_and_is_no_evidence() -> None:
    found = gain(scores(*[-1.0] * 20), scores(-15.0, *[-1.0] * 19))
    assert found.nats == pytest.approx(1 / 20)
    assert found.z == pytest.approx(1.0)


def test_positions_without_a_score_of_both_count_nothing() -> None:
    deep, shallow = Likelihood([[[-1.0, -1.0]] * 16]), Likelihood([[[-1.0]] * 8 + [[-1.0, -2.0]] * 8])
    assert gain(deep, shallow).nats == pytest.approx(0.5)


def test_scores_are_the_drafters_own_probabilities() -> None:
    """A drafter of all of the target's layers: its distribution is the target's, read from a forward without drafts."""
    target = tiny_target(0)
    drafter = DraftModelProposer(cut_from(target, "0,1"), DraftModelConfig(layers="0,1", sampled=True))
    text = Text("t", 0, KnownText((3, 1, 4), (5, 9, 2, 6, 5, 3)), SamplingParams(max_tokens=6, ignore_eos=True))
    found = likelihood(ReplayTarget(target, [text.known], ()), drafter, [text], 16)
    session = target.open(target.plan(1, 16, 1), (target.spec.num_layers,))
    states = session.prefill([0], [list(text.known.tokens)])[0]
    assert states is not None
    probs_TV = target.project(states).softmax(-1)
    firsts = [one[0] for one in found.texts[0] if one]
    assert len(firsts) >= 5
    for place, score in enumerate(firsts):
        share = float(probs_TV[2 + place, text.known.answer[place]])
        assert score == pytest.approx(math.log((1 - FLOOR) * share + FLOOR / target.spec.vocab_size), abs=1e-6)
    assert torch.isfinite(torch.tensor(found.nats))
