"""The enumeration itself: complete, exact, and aware of numbers that are asked for twice."""

import pytest
import torch

from outrider.audit.enumerate import (
    RULES,
    EnumeratingChance,
    Guess,
    branches,
    draw_tree,
    emitted_law,
    fixed_tree,
    law_error,
    mean_accepted,
    model_law,
    random_model,
)
from outrider.draft import Tree

HALVES_V = torch.tensor([0.5, 0.5], dtype=torch.float64)
SKEWED_V = torch.tensor([0.8, 0.2], dtype=torch.float64)


def test_every_branch_is_taken_once_and_probabilities_sum_to_one() -> None:
    def walk(chance: EnumeratingChance) -> tuple[int, ...]:
        first = chance.draw(torch.tensor([0.2, 0.0, 0.8]))
        return (first, *(chance.draw(torch.tensor([3.0, 1.0])) for _ in range(first)))

    found = {branch.outcome: branch.probability for branch in branches(walk)}
    assert len(found) == len(branches(walk)) == 5
    assert sum(found.values()) == pytest.approx(1)
    assert found[0,] == pytest.approx(0.2)
    assert found[2, 0, 1] == pytest.approx(0.8 * 0.75 * 0.25)


def test_the_same_number_answers_the_same_question_alike_and_other_questions_consistently() -> None:
    outcomes = branches(lambda chance: tuple(chance.accept(p, position=3, draw=0) for p in (0.5, 0.5, 0.2, 0.7)))
    assert {branch.outcome: branch.probability for branch in outcomes} == pytest.approx(
        {
            (True, True, True, True): 0.2,
            (True, True, False, True): 0.3,
            (False, False, False, True): 0.2,
            (False, False, False, False): 0.3,
        }
    )


def test_numbers_with_other_coordinates_are_independent() -> None:
    outcomes = branches(lambda chance: (chance.accept(0.5, 3, 0), chance.accept(0.5, 3, 1), chance.accept(0.5, 4, 0)))
    assert [branch.probability for branch in outcomes] == [0.125] * 8


def test_certain_decisions_do_not_branch() -> None:
    outcomes = branches(lambda chance: (chance.accept(1.0, 0, 0), chance.accept(0.0, 1, 0), chance.accept(1.5, 2, 0)))
    assert [tuple(branch) for branch in outcomes] == [(1.0, (True, False, True))]


def test_a_token_drawn_twice_with_the_same_noise_is_refused() -> None:
    with pytest.raises(AssertionError, match="position 7"):
        branches(lambda chance: (chance.pick(HALVES_V, 7), chance.pick(HALVES_V, 7)))


def test_the_worked_example() -> None:
    law_V = emitted_law(
        lambda text: HALVES_V, draw_tree(lambda text: SKEWED_V, (1,)), "rejection", vocab_size=2, length=1
    )
    torch.testing.assert_close(law_V, HALVES_V)


def test_a_biased_rule_is_measured() -> None:
    """Accepting everything emits the drafter's law."""

    def accept_all(guess: Guess, *rest: object) -> object:
        return RULES["coupled"](
            guess, torch.eye(2, dtype=torch.float64)[[*guess.tree.tokens, 0]], 0, EnumeratingChance()
        )

    error = law_error(lambda text: HALVES_V, draw_tree(lambda text: SKEWED_V, (1,)), accept_all, vocab_size=2, length=1)
    assert error == pytest.approx(0.3)


def test_the_law_of_a_model_is_its_chain_rule() -> None:
    model = random_model(4, 3, zeros=0.3)
    law_VV = model_law(model, 3, 2)
    assert law_VV.sum() == pytest.approx(1)
    assert law_VV[2, 1] == model(())[2] * model((2,))[1]
    assert model_law(model, 3, 0) == 1


def test_children_are_drawn_in_order_without_replacement() -> None:
    q_V = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    drafter = draw_tree(lambda text: q_V, (2, 1))
    found = {tuple(branch.outcome.tree.tokens): branch.probability for branch in branches(lambda c: drafter((), c))}
    assert len(found) == 6 * 9
    assert found[0, 1, 0, 0] == pytest.approx(0.5 * (0.3 / 0.5) * 0.25)
    guess = branches(lambda chance: drafter((), chance))[0].outcome
    assert guess.tree.parents == [-1, -1, 0, 1]
    assert guess.q_MV is not None
    assert guess.q_MV.shape == (5, 3)


def test_a_drafter_runs_out_of_tokens_with_probability() -> None:
    drafter = draw_tree(lambda text: torch.tensor([1.0, 0.0], dtype=torch.float64), (2,))
    assert [branch.outcome.tree.tokens for branch in branches(lambda chance: drafter((), chance))] == [[0]]


def test_mean_accepted_of_a_certain_chain_is_its_length() -> None:
    certain_V = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for rule in RULES:
        assert mean_accepted(lambda text: certain_V, fixed_tree(Tree.chain([1, 1, 1])), rule) == 3
