"""The walk against all sets: rates, fairness, and what may be risked."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.choosing import Choice, Node, StepsOf, Terms, choose

NOBODY = float("inf")


def rows(price: float, per_draft: float = 0.0, fixed: float = 1.0) -> StepsOf:
    """Every node costs `price` plain steps, and a draft `per_draft` more."""
    return lambda num_nodes, most, num_tokens: fixed + price * num_nodes + per_draft * (most > 0)


def ranked(*chains: list[float]) -> list[Node]:
    nodes = [Node(chance, slot, number) for slot, chain in enumerate(chains) for number, chance in enumerate(chain)]
    return sorted(nodes, key=lambda node: (-node.chance, node.number))


COPIER = ([0.95, 0.90, 0.86, 0.81], [0.1], [0.1], [0.1])


def sizes(choice: Choice) -> list[int]:
    return [len(nodes) for nodes in choice.kept]


def test_the_worked_example() -> None:
    nodes = ranked(*COPIER)
    together = choose(nodes, 4, Terms([0.0], 1.0), rows(0.14))
    assert sizes(together) == [4, 0, 0, 0]
    assert together.gain == pytest.approx(7.52 / 4 / 1.56)
    assert sizes(choose(nodes, 4, Terms([0.0] * 4, 1.0), rows(0.14))) == [0] * 4
    all_copy = choose(ranked([0.95], [0.95], [0.95], [0.95]), 4, Terms([0.0] * 4, 1.0), rows(0.14))
    assert sizes(all_copy) == [1] * 4
    assert all_copy.gain == pytest.approx(1.95 / 1.56)


def test_nothing_is_fair_where_there_is_nothing_to_win() -> None:
    assert choose([], 2, Terms([0.0, 0.0], 1.0), rows(0.1)) == Choice([[], []], 0.0, 1.0)


def test_a_gift_is_what_may_be_expected_to_be_lost() -> None:
    nodes = ranked([0.9, 0.8], [])
    assert sizes(choose(nodes, 2, Terms([0.0, 0.15], 1.0), rows(0.1))) == [1, 0]
    assert sizes(choose(nodes, 2, Terms([0.0, 0.05], 1.0), rows(0.1))) == [0, 0]
    assert sizes(choose(nodes, 2, Terms([NOBODY, NOBODY], 1.0), rows(0.1))) == [2, 0]


def test_no_step_is_longer_than_the_purse_allows() -> None:
    assert sizes(choose(ranked([0.9] * 8), 1, Terms([0.0], 0.35), rows(0.1))) == [3]


def test_paid_for_drafting_counts_against_plain_decoding_only() -> None:
    choice = choose(ranked([0.2]), 1, Terms([0.0], 1.0), rows(0.15, fixed=1.2))
    assert sizes(choice) == [1]  # 1.2 tokens in 1.35 are more than 1 in 1.2
    assert choice.gain == pytest.approx(1.2 / 1.35)
    assert choice.nothing == pytest.approx(1 / 1.2)


def test_who_lacks_most_is_served_first() -> None:
    """The likeliest nodes alone would make the fourth slot pay for the others."""
    chains = ([0.95, 0.94, 0.93], [0.95, 0.94, 0.93], [0.95, 0.94, 0.93], [0.7])
    choice = choose(ranked(*chains), 4, Terms([0.0] * 4, 9.0), rows(0.14))
    assert sizes(choice)[3] == 1


chance = st.floats(0.01, 1.0)
chains = st.lists(st.lists(chance, max_size=3).map(lambda chain: sorted(chain, reverse=True)), min_size=1, max_size=3)


@settings(deadline=None)
@given(chains, st.floats(0.01, 0.6), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.1, 3), st.booleans())
def test_it_is_fair_and_with_one_payer_the_best(
    drafted: list[list[float]], price: float, per_draft: float, gift: float, purse: float, together: bool
) -> None:
    slots = len(drafted)
    gifts = [gift] * (1 if together else slots)
    steps_of = rows(price, per_draft)
    choice = choose(ranked(*drafted), slots, Terms(gifts, purse), steps_of)

    def rate(counts: tuple[int, ...]) -> float:
        """0 if the set is empty, unfair, or too long."""
        expected = [1 + sum(chain[:count]) for chain, count in zip(drafted, counts, strict=True)]
        steps = steps_of(sum(counts), max(counts), sum(expected))
        paid = [sum(expected) / slots] if together else expected
        fair = all(steps <= tokens + gift + 1e-6 for tokens in paid) and steps - 1 <= purse + 1e-9
        return sum(expected) / slots / steps if any(counts) and fair else 0.0

    counts = tuple(sizes(choice))
    assert all(nodes == list(range(len(nodes))) for nodes in choice.kept)  # none without its parent
    best = max(map(rate, product(*(range(len(chain) + 1) for chain in drafted))))
    assert rate(counts) == pytest.approx(choice.gain)
    assert choice.gain <= best + 1e-9
    if together:
        assert choice.gain == pytest.approx(best)
