"""With processors every rule emits exactly the law of plain decoding with them: production code, enumerated."""

import pytest

from outrider.audit.enumerate import Guess, draw_tree, fixed_tree, random_model
from outrider.draft import Tree
from processor_cases import CASES, VOCAB, Case, drafted_tokens, law_error

EXACT = 1e-12
WIDE = Tree([0, 1, 1, 2, 0, 3, 0], [-1, -1, 0, 0, 1, 1, 3])


def drafted(text: tuple[int, ...], chance: object) -> Guess:
    return Guess(Tree.chain(drafted_tokens(text)), None)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_chains_keep_the_law_over_several_steps(case: Case, rule: str) -> None:
    assert law_error(case, 1, drafted, rule) < EXACT


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_trees_keep_the_law_over_several_steps(case: Case, rule: str) -> None:
    assert law_error(case, 2, fixed_tree(WIDE), rule) < EXACT


@pytest.mark.parametrize("case", [CASES[2], CASES[-1]], ids=str)
@pytest.mark.parametrize(
    ("rule", "widths"), [("coupled", (1, 1)), ("rejection", (1, 1)), ("block", (1, 1)), ("rejection", (2,))]
)
def test_sampled_drafts_keep_the_law(case: Case, rule: str, widths: tuple[int, ...]) -> None:
    assert law_error(case, 3, draw_tree(random_model(5, VOCAB), widths), rule, num_steps=1) < EXACT
