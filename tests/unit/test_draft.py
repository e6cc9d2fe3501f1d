"""Trees, chains and the batch that holds them: the fast forms equal the definitions."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.draft import Draft, Tree, merge, tree_of_paths

VOCAB = 6


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 12) -> Tree:
    """Any tree whose siblings differ."""
    tree = Tree([], [])
    for _ in range(draw(st.integers(0, max_nodes))):
        parent = draw(st.integers(-1, len(tree.tokens) - 1))
        token = draw(st.integers(0, VOCAB - 1))
        if (parent, token) not in zip(tree.parents, tree.tokens, strict=True):
            tree.tokens.append(token)
            tree.parents.append(parent)
    return tree


chains = st.lists(st.integers(0, VOCAB - 1), max_size=7).map(Tree.chain)
paths = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=5), max_size=6)


def lineage(tree: Tree, node: int) -> list[int]:
    """The node and its ancestors, as rows, the root last."""
    rows = []
    while node >= 0:
        rows.append(node + 1)
        node = tree.parents[node]
    return [*rows, 0]


def texts(tree: Tree) -> list[tuple[int, ...]]:
    """The tokens from the root to every node."""
    return [
        tuple(tree.tokens[row - 1] for row in reversed(lineage(tree, node)[:-1])) for node in range(len(tree.tokens))
    ]


@settings(deadline=None)
@given(st.lists(st.one_of(trees(), chains), min_size=1, max_size=4))
def test_a_row_sees_its_ancestors_and_itself(batch: list[Tree]) -> None:
    draft = Draft.of_trees(batch)
    draft.validate(VOCAB)
    visible_BMM = draft.visible_BMM()
    depths_BM = draft.depths_BM(visible_BMM)
    want_BMM = torch.zeros(len(batch), draft.num_rows, draft.num_rows, dtype=torch.bool)
    for slot, tree in enumerate(batch):
        want_BMM[slot, 0, 0] = True
        for node in range(len(tree.tokens)):
            want_BMM[slot, node + 1, lineage(tree, node)] = True
    assert torch.equal(visible_BMM, want_BMM)
    for slot, tree in enumerate(batch):
        padding = [0] * (draft.num_rows - 1 - len(tree.tokens))
        assert depths_BM[slot].tolist() == [0, *tree.depths(), *padding]
        assert tree.depths() == [len(lineage(tree, node)) - 1 for node in range(len(tree.tokens))]


@settings(deadline=None)
@given(st.lists(st.one_of(trees(), chains), min_size=1, max_size=4))
def test_a_batch_is_padded_and_gives_its_trees_back(batch: list[Tree]) -> None:
    draft = Draft.of_trees(batch)
    assert draft.num_slots == len(batch)
    assert draft.num_rows == 1 + max(len(tree.tokens) for tree in batch)
    assert draft.num_nodes == tuple(len(tree.tokens) for tree in batch)
    assert draft.is_chain == all(tree == Tree.chain(tree.tokens) for tree in batch)
    on_device = Draft.of_tensors(draft.tokens_BN, draft.parents_BN, draft.num_nodes, is_chain=draft.is_chain)
    assert on_device.trees == draft.trees == batch
    for slot, tree in enumerate(batch):
        count = len(tree.tokens)
        assert draft.real_rows_BM()[slot].tolist() == [True] * (count + 1) + [False] * (draft.num_rows - 1 - count)
        assert not draft.tokens_BN[slot, count:].any()
        assert (draft.parents_BN[slot, count:] == -1).all()


@settings(deadline=None)
@given(st.lists(chains, min_size=1, max_size=3))
def test_the_short_way_for_chains_equals_the_closure(batch: list[Tree]) -> None:
    draft = Draft.of_trees(batch)
    as_trees = Draft.of_tensors(draft.tokens_BN, draft.parents_BN, draft.num_nodes, is_chain=False)
    assert torch.equal(draft.visible_BMM(), as_trees.visible_BMM())


@given(trees())
def test_children_invert_parents(tree: Tree) -> None:
    children = tree.children()
    assert sorted(row for below in children for row in below) == list(range(1, len(tree.tokens) + 1))
    assert all(tree.parents[row - 1] + 1 == parent for parent, below in enumerate(children) for row in below)
    assert all(below == sorted(below) for below in children)


@given(paths)
def test_a_tree_of_paths_holds_exactly_their_prefixes(continuations: list[list[int]]) -> None:
    tree = tree_of_paths(continuations, max_nodes=100)
    Draft.of_trees([tree]).validate(VOCAB)
    assert sorted(texts(tree)) == sorted({tuple(path[:n]) for path in continuations for n in range(1, len(path) + 1)})


@given(paths, st.integers(0, 10))
def test_earlier_paths_claim_the_nodes_when_they_are_short(continuations: list[list[int]], max_nodes: int) -> None:
    whole, cut = tree_of_paths(continuations, max_nodes=100), tree_of_paths(continuations, max_nodes)
    assert len(cut.tokens) == min(max_nodes, len(whole.tokens))
    Draft.of_trees([cut]).validate(VOCAB)
    assert set(texts(cut)) <= set(texts(whole))
    if continuations and max_nodes >= len(continuations[0]) > 0:
        assert tuple(continuations[0]) in texts(cut)


@given(st.lists(trees(6), max_size=4))
def test_a_merged_tree_is_the_union(several: list[Tree]) -> None:
    merged = merge(several, max_nodes=100)
    Draft.of_trees([merged]).validate(VOCAB)
    assert sorted(texts(merged)) == sorted({text for tree in several for text in texts(tree)})


@given(st.lists(trees(6), max_size=4), st.integers(0, 12))
def test_a_merge_that_is_cut_stays_a_tree_and_serves_earlier_trees_first(several: list[Tree], max_nodes: int) -> None:
    cut = merge(several, max_nodes)
    Draft.of_trees([cut]).validate(VOCAB)
    assert len(cut.tokens) <= max_nodes
    assert set(texts(cut)) <= {text for tree in several for text in texts(tree)}
    if several:
        assert texts(cut)[: len(several[0].tokens)] == texts(several[0])[:max_nodes]


def test_the_docstring_example() -> None:
    tree = Tree([10, 11, 12, 13], [-1, -1, 0, 1])
    assert tree.depths() == [1, 1, 2, 2]
    assert tree.children() == [[1, 2], [3], [4], [], []]
    assert tree_of_paths([[5, 6], [5, 7]], max_nodes=8) == Tree([5, 6, 7], [-1, 0, 0])


def test_an_empty_draft_is_the_root_alone() -> None:
    draft = Draft.empty(3)
    assert (draft.num_slots, draft.num_rows, draft.trees) == (3, 1, [Tree([], [])] * 3)
    assert draft.visible_BMM().tolist() == [[[True]]] * 3
    assert Draft.of_trees([]).num_slots == 0


@pytest.mark.parametrize(
    ("tokens", "parents", "named"),
    [
        ([9], [-1], "vocabulary"),
        ([-1], [-1], "vocabulary"),
        ([1, 2], [1, -1], "parent follows"),
        ([1], [0], "parent follows"),
        ([1, 1], [-1, -1], "siblings"),
    ],
)
def test_validate_refuses_what_no_proposer_may_draft(tokens: Sequence[int], parents: Sequence[int], named: str) -> None:
    with pytest.raises(AssertionError, match=named):
        Draft.of_trees([Tree(list(tokens), list(parents))]).validate(VOCAB)
