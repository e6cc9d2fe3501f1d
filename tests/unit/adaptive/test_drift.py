"""What forwards take beside their table."""

from itertools import pairwise

import pytest

from outrider.adaptive.drift import EVERY, FEW, MOST, MOST_COUNTED, PATIENCE, SURE, Drift


def seen(*steps: tuple[int, float], times: int = SURE) -> Drift:
    drift = Drift()
    for num_nodes, ratio in steps * times:
        drift.add(1, num_nodes, ratio)
    return drift


def test_the_worked_example() -> None:
    drift = seen((0, 12 / 15), (4, 16 / 16))
    assert [drift.factor(1, count) for count in (4, 5, 7)] == [pytest.approx(1.25)] * 3
    assert drift.factor(1, 0) == 1.0


def test_the_nearest_smaller_kind_speaks_for_those_never_seen() -> None:
    drift = seen((0, 1.0), (2, 1.1), (9, 1.4))
    assert [drift.factor(1, count) for count in (1, 2, 3, 4, 7, 8, 15, 16, 500)] == [1.1] * 5 + [1.4] * 4


def test_a_machine_that_is_slow_as_a_whole_has_its_table_right() -> None:
    assert seen((0, 1.7), (3, 1.7)).factor(1, 3) == 1.0


def test_little_evidence_is_no_evidence() -> None:
    assert seen((0, 1.0), (1, 2.0), times=SURE - 1).factor(1, 1) == 1.0
    assert seen((1, 2.0)).factor(1, 1) == 1.0
    assert seen((0, 1.0), (1, 2.0)).factor(2, 1) == 1.0


def test_an_engine_that_always_drafts_has_its_first_plain_steps_to_compare_with() -> None:
    drift = seen((1, 2.0))
    drift.add(1, 0, 9.0)  # the first forward compiles something
    for _ in range(FEW - 1):
        drift.add(1, 0, 1.0)
    assert drift.factor(1, 1) == 2.0


def test_a_slow_spell_is_forgotten() -> None:
    """While nothing else was seen, nodes look dear. Later the table gets another chance, and keeps it."""
    drift = seen((0, 1.0), (4, 1.4))
    assert drift.factor(1, 4) == pytest.approx(1.4)
    for _ in range(PATIENCE * SURE + EVERY):
        drift.add(1, 0, 1.0)
        drift.factor(1, 4)
    assert drift.factor(1, 4) == 1.0
    for _ in range(3 * SURE):
        drift.add(1, 4, 1.0)
        assert drift.factor(1, 4) == 1.0


def test_what_is_confirmed_is_believed_for_longer() -> None:
    drift, tries = seen((0, 1.0)), []
    for step in range(2000):
        drafts = drift.factor(1, 4) == 1.0
        tries += [step] if drafts else []
        drift.add(1, 4 if drafts else 0, 1.4 if drafts else 1.0)
    gaps = [later - earlier for earlier, later in pairwise(tries) if later - earlier > EVERY]
    assert gaps == sorted(gaps)
    assert PATIENCE * SURE <= gaps[0] <= PATIENCE * (SURE + EVERY)
    assert gaps[-1] <= PATIENCE * MOST_COUNTED + 2 * EVERY
    assert len(tries) < 0.06 * 2000


def test_one_pause_changes_nothing_and_no_factor_is_absurd() -> None:
    drift = seen((0, 1.0), (1, 1.2))
    drift.add(1, 1, 50.0)
    assert drift.factor(1, 1) == pytest.approx(1.2)
    assert seen((0, 1.0), (1, 50.0)).factor(1, 1) == MOST
