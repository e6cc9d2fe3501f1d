"""Figures from an engine's counters, by hand."""

import pytest

from outrider.results.counters import Counters, Seen, figures_of, total_of

COUNTERS = Counters(
    num_generation_tokens=21,
    num_drafts=6,
    num_draft_tokens=24,
    num_accepted_tokens=12,
    num_accepted_tokens_per_pos=(6, 3, 2, 1),
)


def test_the_example_of_the_docstring() -> None:
    figures = figures_of(COUNTERS, Seen(num_tokens=20, num_bursts=8))
    assert figures["tau"] == 2.5
    assert figures["mean_acceptance_length"] == 3.0
    assert figures["draft_coverage"] == 0.75
    assert figures["draft_acceptance_rate"] == 0.5
    assert figures["acceptance_per_pos"] == pytest.approx((1, 0.5, 1 / 3, 1 / 6))
    assert figures["conditional_acceptance_per_pos"] == pytest.approx((1, 0.5, 2 / 3, 0.5))
    assert figures["wasted_rows"] == 0.5


def test_bursts_that_a_slow_client_saw_as_one_are_steps_all_the_same() -> None:
    assert figures_of(COUNTERS, Seen(num_tokens=20, num_bursts=3))["tau"] == 2.5


def test_tokens_accepted_behind_the_end_of_an_answer_are_nobodys() -> None:
    assert figures_of(COUNTERS, Seen(num_tokens=18, num_bursts=8))["tau"] == 18 / 8


def test_plain_decoding_has_no_drafts() -> None:
    figures = figures_of(Counters(num_generation_tokens=9), Seen(num_tokens=8, num_bursts=8))
    assert figures["tau"] == 1
    assert figures["draft_coverage"] == 0
    for name in ("mean_acceptance_length", "draft_acceptance_rate", "acceptance_per_pos", "wasted_rows"):
        assert figures[name] is None


def test_answers_of_one_token_have_no_steps() -> None:
    figures = figures_of(Counters(num_generation_tokens=1), Seen(num_tokens=0, num_bursts=0))
    assert figures["tau"] is None
    assert figures["draft_coverage"] is None


def test_counters_grow_and_add_up() -> None:
    begin = Counters(num_generation_tokens=1, num_drafts=1)
    assert (COUNTERS - begin).num_accepted_tokens_per_pos == (6, 3, 2, 1)
    assert total_of([begin, COUNTERS - begin]) == COUNTERS
    assert total_of([]) == Counters()
