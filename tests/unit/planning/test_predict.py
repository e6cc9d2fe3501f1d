"""Predicted speedups, by hand and as properties."""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.costs.tables import DraftCosts, TargetCosts
from outrider.planning.acceptance_profile import AcceptanceProfile
from outrider.planning.predict import (
    FreeDrafts,
    Method,
    Setting,
    best,
    crossover,
    predict,
    step_time,
)

share = st.floats(0, 1)


@dataclass(frozen=True)
class Costs(TargetCosts):
    """`fixed` a forward, `row` for every row beyond `free_rows`."""

    fixed: float = 10.0
    row: float = 0.0
    free_rows: float = 0.0
    rest: float = 0.0

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        return self.fixed + self.row * max(0.0, num_rows - self.free_rows)

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        return 0.0 if greedy else 1.0

    def rest_s(self, num_slots: int) -> float:
        return self.rest


@dataclass(frozen=True)
class Drafts(DraftCosts):
    node: float

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return self.node * num_nodes


def method(*conditional: float, node: float = 0.0, coverage: float = 1.0) -> Method:
    return Method(AcceptanceProfile.chain(conditional, coverage=coverage), Drafts(node))


def test_the_worked_example() -> None:
    target = Costs(fixed=28 / 3, row=2 / 3)  # 10 for one row, 12 for four
    found = predict(target, method(0.5, 0.8, 0.5, node=2 / 3), Setting(), 3)
    assert found.tau == pytest.approx(2.1)
    assert found.speedup == pytest.approx(1.5)
    assert found.break_even_tau == pytest.approx(1.4)
    falls = found.waterfall
    assert (falls.ideal, falls.with_verify) == pytest.approx((2.1, 1.75))
    assert (falls.with_draft, falls.with_host) == pytest.approx((1.5, 1.5))
    assert falls.measured is None
    assert found.tokens_per_s == pytest.approx(2.1 / 14)


@given(st.lists(share, min_size=1, max_size=6), share, st.integers(1, 80), st.integers(0, 8))
def test_free_drafts_and_flat_costs_give_tau(
    conditional: list[float], coverage: float, batch: int, num_nodes: int
) -> None:
    found = predict(Costs(), method(*conditional, coverage=coverage), Setting(num_slots=batch), num_nodes)
    assert found.speedup == pytest.approx(found.tau)
    assert found.break_even_tau == pytest.approx(1)


@settings(deadline=None)
@given(share, st.integers(1, 8), st.floats(0, 5), st.floats(0, 5))
def test_costs_only_ever_take_away(acceptance: float, num_nodes: int, row: float, node: float) -> None:
    found = predict(Costs(row=row), method(acceptance, node=node), Setting(), num_nodes)
    falls = found.waterfall
    assert falls.ideal >= falls.with_verify * (1 - 1e-12)
    assert falls.with_verify >= falls.with_draft * (1 - 1e-12)
    assert falls.with_draft >= falls.with_host * (1 - 1e-12)
    assert (found.speedup > 1) == (found.tau > found.break_even_tau)


def test_a_bent_cost_counts_with_every_number_of_drafting_slots() -> None:
    target = Costs(row=1.0, free_rows=4.0)
    shape = AcceptanceProfile.chain([0.5], coverage=0.5).draft(4, 4)
    found = step_time(target, FreeDrafts(), shape, Setting(num_slots=2))
    # 2, 6 or 10 rows with 1/4, 1/2, 1/4: 0, 2 or 6 rows are paid for.
    assert found.verify_s == pytest.approx(10 + (0 + 2 * 2 + 6) / 4)
    flat = step_time(Costs(row=1.0), FreeDrafts(), shape, Setting(num_slots=2))
    assert flat.verify_s == pytest.approx(10 + 6)


@given(share, st.integers(1, 64), st.integers(1, 8))
def test_ragged_batches_cost_the_mean_over_the_binomial(coverage: float, slots: int, nodes: int) -> None:
    target = Costs(row=1.0, free_rows=slots + nodes)
    shape = AcceptanceProfile.chain([0.5], coverage=coverage).draft(nodes, nodes)
    found = step_time(target, FreeDrafts(), shape, Setting(num_slots=slots))
    by_hand = sum(
        comb(slots, k) * coverage**k * (1 - coverage) ** (slots - k) * target.forward_s(slots, slots + k * nodes, 0)
        for k in range(slots + 1)
    )
    assert found.verify_s == pytest.approx(by_hand)


def test_sampling_is_judged_at_its_own_cost() -> None:
    greedy, sampled = (predict(Costs(), method(0.5), Setting(greedy=greedy), 1) for greedy in (True, False))
    assert (greedy.step.accept_s, sampled.step.accept_s) == (0.0, 1.0)
    assert (greedy.plain.accept_s, sampled.plain.accept_s) == (0.0, 1.0)


def test_short_answers_lower_tau() -> None:
    found = predict(Costs(), method(0.5, 0.5), Setting(num_tokens=2), 2)
    assert found.tau == pytest.approx(2 / 1.5)


def test_no_nodes_are_plain_decoding_with_its_own_proposer() -> None:
    found = predict(Costs(rest=1.0), method(0.9, node=5.0), Setting(), 0, plain=Drafts(0.0))
    assert (found.speedup, found.tau, found.depth) == (1.0, 1.0, 0)


def test_the_best_number_of_nodes() -> None:
    target = Costs(fixed=9.0, row=1.0)
    found = [predict(target, method(0.8), Setting(), count) for count in range(9)]
    by_hand = [sum(0.8**d for d in range(count + 1)) * 10 / (10 + count) for count in range(9)]
    assert [one.speedup for one in found] == pytest.approx(by_hand)
    assert best(found).num_nodes == by_hand.index(max(by_hand)) == 6


def test_of_equals_the_fewest_nodes_are_best() -> None:
    assert best([predict(Costs(), method(0.0), Setting(), count) for count in (2, 0, 1)]).num_nodes == 0


def test_a_tree_takes_the_depth_that_pays() -> None:
    @dataclass(frozen=True)
    class Passes(DraftCosts):
        def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
            return 4.0 * depth

    wide = Method(AcceptanceProfile(ranks=((0.5, 0.3, 0.1), (0.2, 0.1, 0.1))), Passes())
    found = predict(Costs(), wide, Setting(), 3)
    assert (found.depth, found.tau) == (1, pytest.approx(1.9))
    free = predict(Costs(), Method(wide.acceptance, FreeDrafts()), Setting(), 5)
    assert (free.depth, free.tau) == (2, pytest.approx(1.9 + 0.1 + 0.06))


@pytest.mark.parametrize("last", [0, 1, 2, 3, 5, 16, 17, 99])
def test_the_crossover_is_the_first_batch_that_does_not_pay(last: int) -> None:
    asked: list[int] = []

    def pays(batch: int) -> bool:
        asked.append(batch)
        return batch <= last

    assert crossover(pays, limit=128) == last + 1
    assert len(asked) <= 16


def test_beyond_the_limit_nothing_is_said() -> None:
    always: Callable[[int], bool] = lambda batch: True  # noqa: E731
    assert crossover(always, limit=100) is None
    assert crossover(always, limit=128) is None


def test_the_crossover_by_hand() -> None:
    # One node, half accepted: 1.5 (10 + B) against 10 + 2 B: pays while B < 10.
    target, half = Costs(row=1.0), method(0.5)
    assert crossover(lambda batch: predict(target, half, Setting(num_slots=batch), 1).speedup > 1) == 10
