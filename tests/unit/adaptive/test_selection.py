"""The walk against all sets: rates, fairness, and what may be risked."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.adaptive.selection import Constraints, Node, Selection, StepsOf, choose

NOBODY = float("inf")


def rows(price: float, per_draft: float = 0.0, fixed: float = 1.0) -> StepsOf:
    """Every node costs `price` plain steps, and a draft `per_draft` more."""
    return lambda num_nodes, most, num_tokens: fixed + price * num_nodes + per_draft * (most > 0)


def ranked(*chains: list[float]) -> list[Node]:
    nodes = [Node(chance, slot, number) for slot, chain in enumerate(chains) for number, chance in enumerate(chain)]
    return sorted(nodes, key=lambda node: (-node.chance, node.number))


COPIER = ([0.95, 0.90, 0.86, 0.81], [0.1], [0.1], [0.1])


def sizes(selection: Selection) -> list[int]:
    return [len(nodes) for nodes in selection.kept]


def test_the_worked_example() -> None:
    nodes = ranked(*COPIER)
    together = choose(nodes, 4, Constraints([0.0], 1.0), rows(0.14))
    assert sizes(together) == [4, 0, 0, 0]
    assert together.gain == pytest.approx(7.52 / 4 / 1.56)
    assert sizes(choose(nodes, 4, Constraints([0.0] * 4, 1.0), rows(0.14))) == [0] * 4
    all_copy = choose(ranked([0.95], [0.95], [0.95], [0.95]), 4, Constraints([0.0] * 4, 1.0), rows(0.14))
    assert sizes(all_copy) == [1] * 4
    assert all_copy.gain == pytest.approx(1.95 / 1.56)


def test_nothing_is_fair_where_there_is_nothing_to_win() -> None:
    assert choose([], 2, Constraints([0.0, 0.0], 1.0), rows(0.1)) == Selection([[], []], 0.0, 1.0)


def test_an_allowance_is_what_may_be_expected_to_be_lost() -> None:
    nodes = ranked([0.9, 0.8], [])
    assert sizes(choose(nodes, 2, Constraints([0.0, 0.15], 1.0), rows(0.1))) == [1, 0]
    assert sizes(choose(nodes, 2, Constraints([0.0, 0.05], 1.0), rows(0.1))) == [0, 0]
    assert sizes(choose(nodes, 2, Constraints([NOBODY, NOBODY], 1.0), rows(0.1))) == [2, 0]


def test_no_step_is_longer_than_the_burst_allows() -> None:
    assert sizes(choose(ranked([0.9] * 8), 1, Constraints([0.0], 0.35), rows(0.1))) == [3]


def test_paid_for_drafting_counts_against_plain_decoding_only() -> None:
    selection = choose(ranked([0.2]), 1, Constraints([0.0], 1.0), rows(0.15, fixed=1.2))
    assert sizes(selection) == [1]  # 1.2 tokens in 1.35 are more than 1 in 1.2
    assert selection.gain == pytest.approx(1.2 / 1.35)
    assert selection.nothing == pytest.approx(1 / 1.2)


def test_who_lacks_most_is_served_first() -> None:
    """The likeliest nodes alone would make the fourth slot pay for the others."""
    chains = ([0.95, 0.94, 0.93], [0.95, 0.94, 0.93], [0.95, 0.94, 0.93], [0.7])
    selection = choose(ranked(*chains), 4, Constraints([0.0] * 4, 9.0), rows(0.14))
    assert sizes(selection)[3] == 1


chance = st.floats(0.01, 1.0)
chains = st.lists(st.lists(chance, max_size=3).map(lambda chain: sorted(chain, reverse=True)), min_size=1, max_size=3)


@settings(deadline=None)
@given(chains, st.floats(0.01, 0.6), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.1, 3), st.booleans())
def test_it_is_fair_and_with_one_owner_the_best(
    drafted: list[list[float]], price: float, per_draft: float, allowance: float, burst: float, together: bool
) -> None:
    slots = len(drafted)
    allowances = [allowance] * (1 if together else slots)
    steps_of = rows(price, per_draft)
    selection = choose(ranked(*drafted), slots, Constraints(allowances, burst), steps_of)

    def rate(counts: tuple[int, ...]) -> float:
        """0 if the set is empty, unfair, or too long."""
        expected = [1 + sum(chain[:count]) for chain, count in zip(drafted, counts, strict=True)]
        steps = steps_of(sum(counts), max(counts), sum(expected))
        paid = [sum(expected) / slots] if together else expected
        fair = all(steps <= tokens + allowance + 1e-6 for tokens in paid) and steps - 1 <= burst + 1e-9
        return sum(expected) / slots / steps if any(counts) and fair else 0.0

    counts = tuple(sizes(selection))
    assert all(nodes == list(range(len(nodes))) for nodes in selection.kept)  # none without its parent
    best = max(map(rate, product(*(range(len(chain) + 1) for chain in drafted))))
    assert rate(counts) == pytest.approx(selection.gain)
    assert selection.gain <= best + 1e-9
    if together:
        assert selection.gain == pytest.approx(best)
