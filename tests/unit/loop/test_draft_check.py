"""Every draft that no target can read is refused with the slot, the limit and the value; others pass untouched."""

from collections.abc import Sequence

import pytest
import torch

from outrider.draft import Draft, Tree
from outrider.errors import ProposerError
from outrider.loop.draft_check import check_draft, check_siblings

VOCAB = 6
SLOTS, LIMITS = [3, 1], [(3, 3), (2, 1)]


def tensors(tokens: Sequence[Sequence[int]], num_nodes: Sequence[int], **changes: torch.Tensor) -> Draft:
    """Chains that the host does not know."""
    tokens_BN = torch.tensor(tokens)
    draft = Draft.on_device(tokens_BN, num_nodes)
    return Draft.of_tensors(
        **{"tokens_BN": draft.tokens_BN, "parents_BN": draft.parents_BN, "num_nodes": num_nodes, **changes},
        is_chain=True,
    )


@pytest.mark.parametrize(
    "draft",
    [
        Draft.empty(2),
        Draft.of_chains([[0, VOCAB - 1, 0], [2]]),
        Draft.of_trees([Tree([1, 2, 1], [-1, -1, 0]), Tree([4, 5], [-1, -1])]),
        Draft.of_chains([[1], []], probs_BMV=torch.full((2, 2, VOCAB), 1 / VOCAB)),
        tensors([[1, 2], [3, 9]], [2, 1]),
        Draft.of_tensors(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[-1, 0], [-1, -1]]), [2, 2], is_chain=False),
        tensors([[], []], [0, 0], tokens_BN=torch.zeros(2, 0, dtype=torch.int64)),
    ],
)
def test_a_draft_within_its_limits_is_passed_on_as_it_is(draft: Draft) -> None:
    on_host = draft.on_host
    assert check_draft(draft, SLOTS, LIMITS, VOCAB) is draft
    assert draft.on_host == on_host


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (None, r"propose\(\) returned None for slots \[3, 1\]; return a Draft"),
        ([[1], [2]], r"returned \[\[1\], \[2\]\]"),
        (Draft.empty(1), r"1 entries for 2 slots \[3, 1\]"),
        (Draft.of_chains([[1] * 4, []]), r"slot 3: 4 nodes were drafted and its limit is 3 \(DraftLimit.num_nodes\)"),
        (Draft.of_chains([[], [1, 2]]), r"slot 1: a node has depth 2 and the limit is 1 \(DraftLimit.max_depth\)"),
        (Draft.of_trees([Tree([1, 2], [-1, -1]), Tree([1, 2], [-1, 0])]), r"slot 1: a node has depth 2"),
        (tensors([[1, 2], [3, 4]], [2, 2]), r"slot 1: a node has depth 2"),
        (Draft.of_chains([[1, -1], []]), r"slot 3: token -1 of node 1 is outside the vocabulary of 6"),
        (Draft.of_chains([[], [VOCAB]]), r"slot 1: token 6 of node 0 is outside the vocabulary of 6"),
        (Draft.of_chains([[1.0], []]), r"slot 3: 1.0 is a float; tokens and parents must be plain ints"),  # type: ignore[list-item]
        (Draft.of_chains([[True], []]), r"slot 3: True is a bool"),
        (Draft.of_trees([Tree([], []), Tree([1], [None])]), r"slot 1: None is a NoneType"),  # type: ignore[list-item]
        (Draft.of_trees([Tree([1, 2], [-1]), Tree([], [])]), r"slot 3: 2 tokens have 1 parents"),
        (Draft.of_trees([Tree([1, 2], [-1, 1]), Tree([], [])]), r"slot 3: node 1 has parent 1"),
        (Draft.of_trees([Tree([1], [-2]), Tree([], [])]), r"slot 3: node 0 has parent -2"),
        (
            Draft.of_chains([[1], []], probs_BMV=torch.ones(2, 2, VOCAB - 1)),
            r"shape \(2, 2, 5\) and must have \(2, 2, 6\)",
        ),
        (tensors([[1, -4], [2, 2]], [2, 1], tokens_BN=torch.tensor([[1, -4], [2, 2]])), r"token -4 in tokens_BN"),
        (tensors([[1, 6], [2, 2]], [2, 1]), r"token 6 in tokens_BN is outside the vocabulary of 6"),
        (tensors([[1], [2]], [1, 2]), r"num_nodes=\(1, 2\) must be between 0 and the 1 columns"),
        (tensors([[1], [2]], [1, 1], tokens_BN=torch.tensor([[1.0], [2.0]])), r"tokens_BN has .*torch.float32"),
        (tensors([[1], [2]], [1, 1], parents_BN=torch.tensor([[-1, 0], [-1, 0]])), r"parents_BN has shape \(2, 2\)"),
    ],
)
def test_a_draft_that_the_target_cannot_read_is_refused_in_words(draft: object, said: str) -> None:
    with pytest.raises(ProposerError, match=said):
        check_draft(draft, SLOTS, LIMITS, VOCAB)


def test_equal_siblings_are_named() -> None:
    check_siblings(3, Tree([1, 2, 2], [-1, 0, 1]))
    with pytest.raises(ProposerError, match=r"slot 3: token 2 stands twice under node 0"):
        check_siblings(3, Tree([1, 2, 2], [-1, 0, 0]))
