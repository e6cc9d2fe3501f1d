"""The judge calls a planted token a violation and a near-tie a tie, and says where."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider import Engine, SamplingParams, load_proposer
from outrider.noise import Stream, gumbel, position_keys
from outrider.results.equality.summary import summarize_verdicts
from outrider.results.equality.verdict import (
    NOISE_LIMIT_EPS,
    TIE_FACTOR,
    Judgement,
    Verdict,
    first_difference,
    judge,
    judge_logits,
)
from outrider.results.rows import Lossless
from outrider.target import Target
from outrider.targets.native import NativeTarget
from outrider.testing import tiny_spec, tiny_target, tiny_weights

PROMPT = [3, 1, 4, 1, 5]
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=7),
    SamplingParams(temperature=1.0, top_p=0.9, top_k=12, seed=1),
]


def plain_answer(target: Target, sampling: SamplingParams, length: int = 12) -> list[int]:
    engine = Engine(target, load_proposer("none", target))
    return list(engine.generate([PROMPT], replace(sampling, max_tokens=length, ignore_eos=True))[0].tokens)


def twin_target(gap: float, dtype: torch.dtype = torch.float64) -> tuple[NativeTarget, int, int]:
    """A target that first says `want` and whose token `twin` scores the same, up to the relative gap."""
    spec = tiny_spec()
    weights = tiny_weights(spec, 0)
    want = plain_answer(NativeTarget.from_weights(spec, weights, "tiny", dtype), SamplingParams(), 1)[0]
    twin = (want + 1) % spec.vocab_size
    weights["lm_head.weight"][twin] = weights["lm_head.weight"][want] * (1 - gap)
    target = NativeTarget.from_weights(spec, weights, "twins", dtype)
    return target, plain_answer(target, SamplingParams(), 1)[0], twin if gap else max(want, twin)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_equal_answers_are_exact_and_the_target_is_not_asked(sampling: SamplingParams) -> None:
    target = tiny_target()
    answer = plain_answer(target, sampling)
    assert judge(target, PROMPT, sampling, answer, answer) == Verdict(kind="exact", num_compared=len(answer))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("position", [0, 1, 6, 11])
def test_a_planted_token_is_a_violation_where_it_stands(sampling: SamplingParams, position: int) -> None:
    target = tiny_target()
    want = plain_answer(target, sampling)
    got = [*want[:position], (want[position] + 1) % 31, *want[position + 1 :]]
    verdict = judge(target, PROMPT, sampling, want, got)
    assert verdict.kind == "violation"
    assert verdict.position == position
    assert verdict.num_compared == position + 1
    assert verdict.num_skipped == 11 - position
    assert verdict.noise is not None
    assert verdict.noise < 1e-11
    assert verdict.margin is None or verdict.margin > 1e-6


def test_a_near_tie_is_a_tie_and_a_gap_beyond_the_noise_is_not() -> None:
    target, want, twin = twin_target(gap=0)
    tie = judge(target, PROMPT, SamplingParams(), [want, 5], [twin, 9])
    assert (tie.kind, tie.position, tie.num_compared, tie.num_skipped) == ("tie", 0, 1, 1)
    assert tie.margin is not None
    assert tie.noise is not None
    assert tie.margin <= TIE_FACTOR * tie.noise
    target, want, twin = twin_target(gap=1e-9)
    assert judge(target, PROMPT, SamplingParams(), [want, 5], [twin, 9]).kind == "violation"


def test_where_rows_are_exact_not_even_equal_logits_are_a_tie() -> None:
    target, want, twin = twin_target(gap=0, dtype=torch.float32)
    assert target.spec.batch_invariant
    verdict = judge(target, PROMPT, SamplingParams(), [want, 5], [twin, 9])
    assert (verdict.kind, verdict.margin, verdict.noise) == ("violation", 0, 0)


@pytest.mark.parametrize(("want", "got"), [([1, 2, 3], [1, 2]), ([1, 2], [1, 2, 3]), ([], [1])])
def test_an_answer_that_ends_elsewhere_is_a_violation(want: list[int], got: list[int]) -> None:
    verdict = judge(tiny_target(), PROMPT, SamplingParams(), want, got)
    assert (verdict.kind, verdict.position, verdict.margin) == ("violation", min(len(want), len(got)), None)


def two_ways(logits: list[float], noise: float) -> Tensor:
    """The same logits twice, a token of no interest moved by the noise."""
    plain_V = torch.tensor([*logits, -100.0], dtype=torch.float64)
    moved_V = plain_V.clone()
    moved_V[-1] += noise
    return torch.stack((plain_V, moved_V))


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(1e-3, 1.0), st.data())
def test_without_filters_a_tie_is_a_margin_within_the_noise(logits: list[float], noise: float, data: Any) -> None:
    temperature = data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    sampling = SamplingParams(temperature=temperature, seed=data.draw(st.integers(0, 99)))
    logits_RV = two_ways(logits, noise)
    scores_V = logits_RV[0]
    if temperature:
        keys_12 = position_keys(torch.tensor([sampling.seed]), torch.tensor([9]), Stream.TARGET)
        scores_V = scores_V / temperature + gumbel(keys_12, len(scores_V))[0]
    want, got = int(scores_V.argmax()), data.draw(st.integers(0, len(logits) - 1))
    margin = float(scores_V.max() - scores_V[got]) * (temperature or 1.0)
    judged = judge_logits(logits_RV, want, got, sampling, 9, torch.bfloat16)
    assert judged.noise == pytest.approx(noise)
    assert judged.margin == pytest.approx(margin, abs=1e-9)
    if abs(margin - TIE_FACTOR * noise) > 1e-9:
        assert judged.is_tie == (margin < TIE_FACTOR * noise)


def test_noise_that_cannot_be_rounding_explains_nothing() -> None:
    limit = NOISE_LIMIT_EPS * torch.finfo(torch.float32).eps * 100
    for factor, is_tie in ((0.5, True), (2.0, False)):
        logits_RV = two_ways([1.0, 1.0, 0.0], limit * factor)
        assert judge_logits(logits_RV, 0, 1, SamplingParams(), 5, torch.float32).is_tie == is_tie


def test_the_baseline_must_be_within_the_noise_too() -> None:
    logits_RV = two_ways([3.0, 2.0, 1.0], 1e-3)
    assert not judge_logits(logits_RV, 1, 0, SamplingParams(), 5, torch.bfloat16).is_tie


def edge_judgement(noise: float, **filters: Any) -> Judgement:
    """The text says token 1, or token 2 in its stead where rounding lets token 2 past the filter."""
    logits = [5.0, 4.0, 4.0 - 1e-4]
    for seed in range(1000):
        sampling = SamplingParams(temperature=1.0, seed=seed, **filters)
        keys_12 = position_keys(torch.tensor([seed]), torch.tensor([9]), Stream.TARGET)
        scores = (torch.tensor(logits) + gumbel(keys_12, 3)[0]).tolist()
        if scores[2] > scores[1] + 0.1 > scores[0] + 0.2:
            return judge_logits(two_ways(logits, noise), 1, 2, sampling, 9, torch.bfloat16)
    raise AssertionError("no seed puts the tokens in this order")


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"min_p": 0.36785}, {"top_p": 0.7}])
def test_a_token_at_the_edge_of_a_filter_can_be_a_tie(filters: dict[str, Any]) -> None:
    far, near = edge_judgement(1e-6, **filters), edge_judgement(1e-3, **filters)
    assert (far.is_tie, far.margin) == (False, None)
    assert (near.is_tie, near.margin) == (True, None)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_the_first_difference_is_the_first(want: list[int], got: list[int]) -> None:
    at = first_difference(want, got)
    if at is None:
        assert want == got
    else:
        assert want[:at] == got[:at]
        assert want[at : at + 1] != got[at : at + 1]


def test_a_cell_is_as_good_as_its_worst_answer() -> None:
    exact = Verdict(kind="exact", num_compared=9)
    tie = Verdict(kind="tie", position=2, margin=0.01, noise=0.02, num_compared=3, num_skipped=6)
    wrong = Verdict(kind="violation", position=4, margin=1.5, noise=0.02, num_compared=5, num_skipped=4)
    ended = Verdict(kind="violation", position=4, num_compared=5)
    cut = Verdict(kind="violation", position=1, margin=None, noise=0.5, num_compared=2)
    assert summarize_verdicts([]) == Lossless(verdict="unverified")
    assert summarize_verdicts([exact, exact]) == Lossless(verdict="exact", num_compared=18)
    assert summarize_verdicts([exact, tie]) == Lossless(verdict="ties", ties=1, num_compared=12, num_skipped=6)
    worst = summarize_verdicts([tie, wrong, ended], names=["a", "b", "c"])
    assert (worst.verdict, worst.ties, worst.violations) == ("violated", 1, 2)
    assert worst.where == "b, token 4: margin 1.5, noise 0.02"
    assert summarize_verdicts([ended]).where == "answer 0, token 4: one of the answers ended early"
    assert summarize_verdicts([cut]).where == "answer 0, token 1: cut off by a filter, noise 0.5"
