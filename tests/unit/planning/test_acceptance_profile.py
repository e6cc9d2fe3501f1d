"""AcceptanceProfile profiles against enumeration and by hand."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import ConfigError
from outrider.metrics import expected_tau
from outrider.planning.acceptance_profile import EMPTY, AcceptanceProfile, draft_of_paths, expected_steps

share = st.floats(0, 1)
chains = st.lists(share, min_size=1, max_size=5)


@st.composite
def rank_tables(draw: st.DrawFn) -> list[list[float]]:
    """By depth the shares of one to three ranks, in all at most 1."""
    table = []
    for _ in range(draw(st.integers(1, 3))):
        parts = draw(st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
        table.append(sorted((part / sum(parts) for part in parts[1:]), reverse=True))
    return table


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[list[float]], list[tuple[int, ...]]]:
    """A table, and some of its rank paths, each with its ancestors."""
    table = draw(rank_tables())
    every = [path for depth in range(len(table)) for path in product(*(range(len(row)) for row in table[: depth + 1]))]
    picked = draw(st.sets(st.sampled_from(every), min_size=1))
    closed = {path[: end + 1] for path in picked for end in range(len(path))}
    return table, sorted(closed, key=lambda path: (len(path), path))


def enumerated(table: list[list[float]], paths: list[tuple[int, ...]]) -> list[float]:
    """How often exactly d nodes are accepted: every outcome of the target's rank at every depth."""
    law = [0.0] * (len(table) + 1)
    outcomes = [[*enumerate(row), (None, 1 - sum(row))] for row in table]
    for outcome in product(*outcomes):
        weight, path = 1.0, ()
        for _, chance in outcome:
            weight *= chance
        for rank, _ in outcome:
            if rank is None or (*path, rank) not in paths:
                break
            path = (*path, rank)
        law[len(path)] += weight
    return law


def test_the_worked_example() -> None:
    shape = AcceptanceProfile.chain([0.5, 0.5]).draft(2, 2)
    assert shape.tau == 1.75
    assert shape.emitted == (0.5, 0.25, 0.25)
    assert expected_steps(shape.emitted, 2) == 1.5
    assert shape.tau_of(2) == pytest.approx(2 / 1.5)


@given(chains, share)
def test_a_chain_is_the_published_formula(conditional: list[float], coverage: float) -> None:
    shape = AcceptanceProfile.chain(conditional, coverage=coverage).draft(len(conditional), len(conditional))
    assert shape.tau == pytest.approx(1 + coverage * (expected_tau(conditional) - 1))
    assert sum(shape.emitted) == pytest.approx(1)


@settings(deadline=None)
@given(trees())
def test_tau_equals_the_enumeration_of_all_outcomes(tree: tuple[list[list[float]], list[tuple[int, ...]]]) -> None:
    table, paths = tree
    shape = draft_of_paths(paths, table)
    law = enumerated(table, paths)
    assert shape.emitted == pytest.approx(law[: shape.depth + 1], abs=1e-12)
    assert shape.tau == pytest.approx(sum((accepted + 1) * chance for accepted, chance in enumerate(law)))


@settings(deadline=None)
@given(trees())
def test_the_best_tree_is_at_least_as_good_as_any(tree: tuple[list[list[float]], list[tuple[int, ...]]]) -> None:
    table, paths = tree
    acceptance = AcceptanceProfile(ranks=tuple(map(tuple, table)))
    found = max(acceptance.draft(len(paths), depth).tau for depth in acceptance.depths(len(paths)))
    assert found >= draft_of_paths(paths, table).tau - 1e-12


@given(chains, st.integers(1, 40))
def test_an_answer_that_ends_never_has_a_larger_tau(conditional: list[float], num_tokens: int) -> None:
    shape = AcceptanceProfile.chain(conditional).draft(len(conditional), len(conditional))
    assert shape.tau_of(num_tokens) + 1e-12 >= 1
    assert shape.tau_of(num_tokens) <= shape.tau + 1e-9


def test_steps_of_short_answers_by_hand() -> None:
    assert expected_steps([1.0], 7) == 7
    assert expected_steps([0.0, 1.0], 7) == 4
    assert expected_steps([0.5, 0.5], 1) == 1
    assert expected_steps([0.5, 0.5], 3) == pytest.approx(1 + 0.5 * 1.5 + 0.5 * 1)


def test_the_last_known_depth_stands_for_deeper_ones() -> None:
    assert AcceptanceProfile.chain([0.8, 0.5]).draft(3, 3).reached == pytest.approx((0.8, 0.4, 0.2))


def test_width_is_nodes_per_level() -> None:
    lookup = AcceptanceProfile.chain([0.8], width=0.75)
    assert list(lookup.depths(4)) == [4]
    assert lookup.draft(4, 4).num_nodes == 3
    tree = AcceptanceProfile.chain([0.8], width=4.0)
    assert list(tree.depths(8)) == [2]
    assert tree.draft(8, 2).num_nodes == 8
    assert list(tree.depths(1)) == [1]
    assert tree.draft(1, 1).num_nodes == 1


def test_no_nodes_are_plain_decoding() -> None:
    assert AcceptanceProfile.chain([0.8]).draft(0, 0) == EMPTY
    assert EMPTY.tau == 1
    assert EMPTY.emitted == (1.0,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ranks": ()}, "empty"),
        ({"ranks": ((),)}, "empty"),
        ({"ranks": ((1.2,),)}, "1.2 is not between 0 and 1"),
        ({"ranks": ((float("nan"),),)}, "not between"),
        ({"ranks": ((0.5,),), "coverage": -0.1}, "-0.1 is not between"),
        ({"ranks": ((0.7, 0.4),)}, "depth 1 are accepted with 1.1"),
        ({"ranks": ((0.5,),), "width": 0.0}, "width=0 must be positive"),
    ],
)
def test_impossible_profiles_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AcceptanceProfile(**fields)  # type: ignore[arg-type]
