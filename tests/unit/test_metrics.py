"""Every figure of a run, on records small enough to count by hand."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.metrics import PrefillRecord, SlotStep, StepRecord, expected_tau, summarize


def slot(num_nodes: int, num_accepted: int, num_emitted: int | None = None, depth: int | None = None) -> SlotStep:
    return SlotStep(
        request=1,
        context_length=10,
        num_nodes=num_nodes,
        draft_depth=num_nodes if depth is None else depth,
        num_accepted=num_accepted,
        num_emitted=num_accepted + 1 if num_emitted is None else num_emitted,
        finished=False,
    )


def step(*slots: SlotStep, is_chain: bool = True, times: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 10.0)) -> StepRecord:
    propose_s, verify_s, accept_s, commit_s, host_s = times
    return StepRecord(
        step=1,
        num_rows=1 + max(slot.num_nodes for slot in slots),
        is_chain=is_chain,
        slots=slots,
        propose_s=propose_s,
        verify_s=verify_s,
        accept_s=accept_s,
        commit_s=commit_s,
        host_s=host_s,
    )


def test_the_worked_example() -> None:
    summary = summarize([step(slot(3, 2)), step(slot(3, 0))])
    assert summary.num_emitted_tokens == 4
    assert summary.tokens_per_target_forward == 2
    assert summary.mean_acceptance_length == 2
    assert summary.draft_acceptance_rate == pytest.approx(1 / 3)
    assert summary.acceptance_per_pos == (0.5, 0.5, 0.0)


def test_every_figure_of_a_ragged_run() -> None:
    steps = [step(slot(4, 4), slot(0, 0)), step(slot(2, 1), slot(4, 0)), step(slot(0, 0), times=(0.0,) * 5)]
    prefills = [PrefillRecord((1, 2), 20, 0.5, 0.25), PrefillRecord((3,), 7, 1.0, 0.0)]
    summary = summarize(steps, prefills)
    assert dataclasses.asdict(summary) == {
        "num_steps": 3,
        "num_slot_steps": 5,
        "num_drafts": 3,
        "num_draft_tokens": 10,
        "num_accepted_tokens": 5,
        "num_forced_tokens": 0,
        "num_accepted_forced_tokens": 0,
        "num_emitted_tokens": 10,
        "tokens_per_target_forward": 2.0,
        "mean_acceptance_length": pytest.approx(1 + 5 / 3),
        "draft_coverage": 0.6,
        "draft_acceptance_rate": 0.5,
        "node_efficiency": None,
        "wasted_rows": 0.5,
        "acceptance_per_pos": pytest.approx((2 / 3, 1 / 3, 1 / 3, 1 / 3)),
        "conditional_acceptance_per_pos": pytest.approx((2 / 3, 1 / 2, 1.0, 1.0)),
        "decode_s": 40.0,
        "prefill_s": 1.75,
        "shares": pytest.approx({"propose": 0.05, "verify": 0.1, "accept": 0.15, "commit": 0.2, "host": 0.5}),
    }


def test_a_stop_inside_an_accepted_path_counts_what_was_emitted() -> None:
    summary = summarize([step(slot(4, 2, num_emitted=2))])
    assert summary.num_accepted_tokens == 2
    assert summary.tokens_per_target_forward == 2.0


def test_trees_have_a_node_efficiency_and_no_acceptance_rate() -> None:
    summary = summarize([step(slot(8, 2, depth=3), is_chain=False), step(slot(2, 1))])
    assert summary.draft_acceptance_rate is None
    assert summary.node_efficiency == pytest.approx(0.3)
    assert summary.wasted_rows == pytest.approx(0.7)
    assert summary.acceptance_per_pos == (1.0, 0.5, 0.0)


def test_ratios_of_nothing_are_none() -> None:
    summary = summarize([])
    assert summary.tokens_per_target_forward is None
    assert summary.mean_acceptance_length is None
    assert summary.draft_coverage is None
    assert summary.wasted_rows is None
    assert summary.acceptance_per_pos == summary.conditional_acceptance_per_pos == ()
    assert set(summary.shares.values()) == {0.0}


def test_plain_decoding_emits_one_token_a_step() -> None:
    summary = summarize([step(slot(0, 0)), step(slot(0, 0))])
    assert summary.tokens_per_target_forward == 1.0
    assert summary.draft_coverage == 0.0
    assert summary.draft_acceptance_rate is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_expected_tau_of_measured_acceptance_is_measured_tau(accepted: list[int]) -> None:
    summary = summarize([step(slot(5, count)) for count in accepted])
    assert summary.tokens_per_target_forward == pytest.approx(summary.mean_acceptance_length)
    assert expected_tau(summary.conditional_acceptance_per_pos) == pytest.approx(summary.tokens_per_target_forward)


def test_expected_tau() -> None:
    assert expected_tau([]) == 1.0
    assert expected_tau([0.5, 0.5]) == 1.75
    assert expected_tau([1.0] * 7) == 8.0
    assert expected_tau([0.0, 1.0]) == 1.0


def test_forced_tokens_count_in_tau_and_in_nothing_about_drafts() -> None:
    forced = dataclasses.replace(slot(4, 3), num_forced=4)
    summary = summarize([step(slot(3, 1)), step(forced), step(slot(0, 0))])
    assert summary.tokens_per_target_forward == pytest.approx((2 + 4 + 1) / 3)
    assert (summary.num_forced_tokens, summary.num_accepted_forced_tokens) == (4, 3)
    assert (summary.num_drafts, summary.num_draft_tokens, summary.num_accepted_tokens) == (1, 3, 1)
    assert summary.mean_acceptance_length == 2
    assert summary.draft_coverage == pytest.approx(1 / 3)


def test_the_context_of_a_step_is_a_mean_over_rows() -> None:
    """A plain slot of 100 tokens has one row, one of 400 tokens and two nodes has three: (100 + 3 * 400) / 4."""
    record = step(
        dataclasses.replace(slot(0, 0), context_length=100), dataclasses.replace(slot(2, 0), context_length=400)
    )
    assert record.context_per_row == 325
