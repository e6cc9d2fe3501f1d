"""Medusa drafts: the best static tree, cut to any room, filled from the heads at the right state."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider import (
    CheckpointError,
    Commit,
    ConfigError,
    DraftLimit,
    Engine,
    SamplingParams,
    Session,
    SessionPlan,
    load_proposer,
)
from outrider.formats.medusa import MedusaCheckpoint, write_medusa
from outrider.formats.store import provenance
from outrider.models.medusa import TOKEN_MAP
from outrider.noise import Stream
from outrider.proposers.drafting.medusa_tree import RankTree, default_accuracies, grown_paths
from outrider.proposers.drafting.recurrent_tree import Paths
from outrider.proposers.medusa import MedusaConfig, MedusaProposer, random_checkpoint
from outrider.sampling import distribution
from outrider.target import Target
from outrider.targets.hf import HFTarget
from outrider.testing import assert_lossless, tiny_target

shares = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 1.0])
accuracies = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(shares, min_size=width, max_size=width), min_size=1, max_size=3)
)


def worth(table: list[list[float]], paths: Paths) -> float:
    """Drafted tokens accepted on average, if the heads err independently."""
    return sum(math.prod(table[head][rank] for head, rank in enumerate(path)) for path in paths)


def trees(table: list[list[float]], num_nodes: int, max_depth: int) -> Iterator[Paths]:
    """Every prefix-closed set of at most `num_nodes` paths."""
    every = [
        path for depth in range(1, max_depth + 1) for path in itertools.product(range(len(table[0])), repeat=depth)
    ]

    def extended(kept: Paths, start: int) -> Iterator[Paths]:
        yield kept
        for place in range(start, len(every)):
            path = every[place]
            if len(kept) < num_nodes and (len(path) == 1 or path[:-1] in kept):
                yield from extended((*kept, path), place + 1)

    return extended((), 0)


@settings(max_examples=60, deadline=None)
@given(table=accuracies, num_nodes=st.integers(1, 4), max_depth=st.integers(1, 3))
def test_no_tree_of_that_size_is_worth_more(table: list[list[float]], num_nodes: int, max_depth: int) -> None:
    depth = min(max_depth, len(table))
    best = max(worth(table, paths) for paths in trees(table, num_nodes, depth))
    cut = RankTree(grown_paths(table, 6), len(table[0])).cut(DraftLimit(num_nodes, max_depth))
    assert worth(table, cut.paths) == pytest.approx(best)
    assert len(cut.paths) <= num_nodes
    assert all(len(path) <= max_depth for path in cut.paths)


@given(
    table=accuracies,
    small=st.tuples(st.integers(0, 12), st.integers(0, 4)),
    more=st.integers(0, 8),
    num_ranks=st.integers(1, 3),
)
def test_a_smaller_room_is_a_prefix(
    table: list[list[float]], small: tuple[int, int], more: int, num_ranks: int
) -> None:
    tree = RankTree(grown_paths(table, 20), num_ranks)
    limit = DraftLimit(*small)
    cut, larger = tree.cut(limit), tree.cut(DraftLimit(limit.num_nodes + more, limit.max_depth))
    assert larger.paths[: len(cut.paths)] == cut.paths
    deep = tree.cut(DraftLimit(limit.num_nodes, 99)).paths
    assert {path for path in deep if len(path) <= limit.max_depth} <= set(cut.paths)
    for node, (path, parent) in enumerate(zip(cut.paths, cut.parents, strict=True)):
        assert path[:-1] == (cut.paths[parent] if parent >= 0 else ())
        assert parent < node
        assert path[-1] < min(num_ranks, cut.widths[len(path) - 1])
    for head, width in enumerate(cut.widths):
        assert any(len(path) == head + 1 and path[-1] == width - 1 for path in cut.paths)


def test_the_worked_example() -> None:
    assert grown_paths([[0.6, 0.2], [0.5, 0.1]], 5)[:5] == ((0,), (0, 0), (1,), (1, 0), (0, 1))
    cut = RankTree(grown_paths([[0.6, 0.2], [0.5, 0.1]], 4), 31).cut(DraftLimit(4, 9))
    assert cut.filled([[7, 8], [5, 6]]) == ([7, 5, 8, 5], [-1, 0, -1, 2])


def test_the_built_in_tree_is_wide_above_and_deep_in_the_middle() -> None:
    table = default_accuracies(4)
    assert all(share <= 1 for row in table for share in row)
    assert sum(table[0]) < 1
    paths = grown_paths(table, 16)[:16]
    assert paths[:4] == ((0,), (0, 0), (1,), (0, 0, 0))
    assert (5,) in paths
    assert max(len(path) for path in paths) == 4


def opened(
    target: Target, checkpoint: MedusaCheckpoint, noise: Stream = Stream.TARGET, **settings: Any
) -> tuple[MedusaProposer, Session]:
    proposer = MedusaProposer.of(checkpoint, MedusaConfig(checkpoint="", **settings), target)
    return proposer, proposer.open(SessionPlan(max_slots=3, max_positions=64, noise=noise, device=target.spec.device))


def ranked(proposer: MedusaProposer, state_E: Tensor) -> list[list[int]]:
    ids_K = proposer.heads.ids_K
    logits = proposer.heads.predict(state_E[None], [proposer.heads.shape.num_heads])
    orders = [logits_1K[0].argsort(descending=True) for logits_1K in logits]
    return [(order_K if ids_K is None else ids_K[order_K]).tolist() for order_K in orders]


@pytest.mark.parametrize("seed", range(6))
def test_a_tree_holds_the_ranks_of_its_paths(seed: int) -> None:
    target = tiny_target()
    proposer, session = opened(target, random_checkpoint(target, seed), num_nodes=9, width=3)
    features_TF = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    session.admit(0, [1, 2, 3, 4], SamplingParams(), features_TF[:3])
    session.admit(2, [5, 6], SamplingParams(), features_TF[3:4])
    limits = [DraftLimit(2, 9), DraftLimit(99, 1 + seed % 3)]
    draft = session.propose([2, 0], limits)
    for tree, limit, state_E in zip(draft.trees, limits, (features_TF[3], features_TF[2]), strict=True):
        order = ranked(proposer, state_E)
        paths = proposer.tree.cut(DraftLimit(min(9, limit.num_nodes), limit.max_depth)).paths
        assert tree.tokens == [order[len(path) - 1][path[-1]] for path in paths]
        assert tree.depths() == [len(path) for path in paths]


def test_the_state_is_that_of_the_last_accepted_row() -> None:
    target = tiny_target()
    proposer, session = opened(target, random_checkpoint(target, 0), num_nodes=4, width=1)
    features_BMF = torch.randn(2, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    session.admit(1, [7], SamplingParams(), features_BMF[0, :0])
    assert session.propose([1], [DraftLimit(4, 4)]).num_nodes == (0,)  # nothing was read before a prompt of one token
    session.observe([Commit(1, [0], [3], 1)], features_BMF)
    assert session.propose([1], [DraftLimit(4, 4)]).trees[0].tokens[0] == ranked(proposer, features_BMF[1, 0])[0][0]
    assert session.propose([1], [DraftLimit(0, 4)]).num_nodes == (0,)
    assert session.propose([1], [DraftLimit(4, 0)]).num_nodes == (0,)
    session.observe([Commit(1, [0, 1, 3], [3, 4, 5], 0)], features_BMF)
    assert session.propose([1], [DraftLimit(4, 4)]).trees[0].tokens[0] == ranked(proposer, features_BMF[0, 3])[0][0]
    assert session.num_bytes == 16 * 8
    session.release(1)
    assert session.num_bytes == 0
    session.admit(1, [7], SamplingParams(), features_BMF[0, :0])  # the next request knows nothing of the last one
    assert session.propose([1], [DraftLimit(4, 4)]).num_nodes == (0,)


def test_only_the_heads_that_a_room_needs_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target()
    proposer, session = opened(target, random_checkpoint(target, 2), num_nodes=9, width=3)
    assert proposer.heads.shape.num_heads == 4
    asked: list[list[int]] = []
    predict = proposer.heads.predict

    def watched(states_BE: Tensor, depths: list[int]) -> list[Tensor]:
        asked.append(depths)
        return predict(states_BE, depths)

    monkeypatch.setattr(proposer.heads, "predict", watched)
    features_TF = torch.zeros(1, 16, dtype=torch.float64)
    for slot in range(3):
        session.admit(slot, [1, 2], SamplingParams(), features_TF)
    session.propose([0, 1, 2], [DraftLimit(9, 2), DraftLimit(0, 9), DraftLimit(1, 9)])
    assert asked == [[2, 0, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_a_sampled_chain_comes_with_its_probabilities(seed: int) -> None:
    target = tiny_target()
    proposer, session = opened(
        target, random_checkpoint(target, seed), Stream.DRAFT, num_nodes=3, width=1, sampled=True
    )
    features_TF = torch.randn(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sampling = SamplingParams(temperature=2.0, top_k=9, seed=seed)
    session.admit(0, [1, 2], sampling, features_TF)
    draft = session.propose([0], [DraftLimit(3, 3)])
    assert draft.probs_BMV is not None
    depth = len(draft.trees[0].tokens)
    assert depth == min(3, proposer.heads.shape.num_heads)
    logits = proposer.heads.predict(features_TF, [depth])
    for head, logits_1K in enumerate(logits):
        want_V = torch.zeros(31, dtype=torch.float64)
        ids_K = torch.arange(31) if proposer.heads.ids_K is None else proposer.heads.ids_K
        want_V[ids_K] = distribution(logits_1K, sampling)[0]
        assert (draft.probs_BMV[0, head] - want_V).abs().max() < 1e-12
        assert want_V[draft.trees[0].tokens[head]] > 0


def test_drawn_tokens_follow_the_heads() -> None:
    target = tiny_target()
    proposer, session = opened(target, random_checkpoint(target, 0), Stream.DRAFT, num_nodes=1, width=1, sampled=True)
    features_TF = torch.randn(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts_V = torch.zeros(31, dtype=torch.float64)
    for seed in range(400):
        session.admit(0, [1, 2], SamplingParams(temperature=8.0, seed=seed), features_TF)
        counts_V[session.propose([0], [DraftLimit(1, 1)]).trees[0].tokens[0]] += 1
        session.release(0)
    want_V = distribution(proposer.heads.predict(features_TF, [1])[0], SamplingParams(temperature=8.0))[0]
    assert (counts_V / 400 - want_V).abs().sum() / 2 < 0.15


@pytest.mark.parametrize("variant", [{}, {"width": 1}, {"width": 1, "sampled": True}, {"tree": "0 1 0.0"}], ids=str)
def test_heads_from_a_checkpoint_are_lossless(variant: dict[str, Any], tmp_path: Path) -> None:
    target = tiny_target()
    made = random_checkpoint(target, 4)
    write_medusa(tmp_path, made.shape, made.tensors, "vllm", provenance(target))
    proposer = load_proposer("medusa", target, checkpoint=str(tmp_path), num_nodes=12, **variant)
    assert proposer.spec.num_bytes > 0
    greedy = SamplingParams(max_tokens=12, ignore_eos=True)
    for params in (greedy, replace(greedy, temperature=0.7, seed=3)):
        assert_lossless(target, proposer, [[1, 2, 3], [4]], params, max_batch=2)


def test_it_runs_on_another_target(tiny_gpt2_target: HFTarget) -> None:
    for seed in range(4):
        proposer = MedusaProposer.example(tiny_gpt2_target, seed)
        assert_lossless(
            tiny_gpt2_target, proposer, [[1, 2, 3], [4]], SamplingParams(max_tokens=8, ignore_eos=True), max_batch=2
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_kernels_run_it(dtype: torch.dtype) -> None:
    target = tiny_target(dtype=dtype)
    for seed in range(3):
        proposer = MedusaProposer.example(target, seed)
        assert_lossless(target, proposer, [[1, 2, 3], [4]], SamplingParams(max_tokens=8, ignore_eos=True))


def test_examples_differ() -> None:
    target = tiny_target()
    made = [MedusaProposer.example(target, seed) for seed in range(8)]
    assert {one.config.sampled for one in made} == {True, False}
    assert {one.heads.shape.output for one in made} == {"own", "one", "target"}
    assert {one.heads.ids_K is None for one in made} == {True, False}
    assert {one.tree.max_depth for one in made} >= {2, 3}


def paths_of(measured: MedusaCheckpoint, **settings: Any) -> Paths:
    proposer, _ = opened(tiny_target(), measured, **settings)
    return proposer.tree.cut(DraftLimit(proposer.spec.max_nodes, 99)).paths


def test_the_users_tree_goes_before_the_measured_one_before_the_built_in_one() -> None:
    plain = random_checkpoint(tiny_target(), 0)
    table = ((0.1, 0.9), (0.8, 0.1))
    both = replace(plain, accuracies=table, tree=((1,), (0,)))
    assert paths_of(plain, num_nodes=2) == ((0,), (0, 0))
    assert paths_of(both, num_nodes=3) == ((1,), (1, 0), (0,))
    assert paths_of(replace(both, accuracies=()), num_nodes=3) == ((1,), (0,))
    assert paths_of(both, num_nodes=3, tree="0 2 0.1 0.0") == ((0,), (2,), (0, 1))
    assert paths_of(both, width=1) == ((0,), (0, 0))


def test_a_vocabulary_smaller_than_the_tree_is_wide() -> None:
    target = tiny_target()
    few = random_checkpoint(target, 1)
    columns = few.shape.num_columns
    assert TOKEN_MAP in few.tensors
    paths = paths_of(few, num_nodes=200, width=32, tree=" ".join(map(str, range(30))))
    assert paths == tuple((rank,) for rank in range(columns))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_proposer("medusa", tiny_target(), checkpoint=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_nodes": 0}, "num_nodes=0 must be between 1 and 256"),
        ({"width": 33}, "width=33 must be between 1 and 32"),
        ({"sampled": True}, "sampled=True drafts chains; set width=1 and no tree"),
        ({"sampled": True, "width": 1, "tree": "0"}, "sampled=True drafts chains"),
        ({"tree": "0 1.0 1"}, "path 1.0 comes before its parent"),
        ({"tree": "0 0.0 0.0.0"}, "tree has path 0.0.0, but there are only 2 heads; cut it there"),
        ({"node": 3}, "no setting 'node'"),
    ],
)
def test_bad_settings_get_one_sentence(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    target = tiny_target()
    made = random_checkpoint(target, 0)
    write_medusa(tmp_path, made.shape, made.tensors, "vllm", provenance(target))
    with pytest.raises(ConfigError, match=message):
        load_proposer("medusa", target, checkpoint=str(tmp_path), **given)


def test_a_batch_of_mixed_requests_keeps_each_text() -> None:
    target = tiny_target()
    proposer, _ = opened(target, random_checkpoint(target, 2), num_nodes=6, width=4)
    prompts = [[5], [1, 2, 3, 4], [9, 8]]
    alone = [Engine(target, proposer).generate([prompt], SamplingParams(max_tokens=9))[0].tokens for prompt in prompts]
    together = Engine(target, proposer, max_batch=2).generate(prompts, SamplingParams(max_tokens=9))
    assert [one.tokens for one in together] == alone
