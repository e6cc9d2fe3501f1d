"""A repeated forward gives the bits of a forward from Python."""

import pytest
import torch

from outrider.draft import Draft, Tree
from outrider.ops import cpu as ops_cpu
from outrider.target import Forward
from outrider.targets.native import NativeSession
from outrider.testing.tiny import tiny_target

TREES = [
    [Tree([], []), Tree([], [])],
    [Tree([3, 4, 5], [-1, 0, 1]), Tree([6, 7, 8], [-1, 0, 1])],
    [Tree([3, 4, 5], [-1, -1, 0]), Tree([9], [-1])],
]


def session(dtype: torch.dtype) -> NativeSession:
    target = tiny_target(dtype=dtype)
    opened = target.open(target.plan(3, 40, 6), feature_layers=(0, 1, 2))
    opened.prefill([0, 2], [[1, 2, 3], [4, 5, 6, 7, 8]])
    return opened


def forwards(opened: NativeSession, roots: list[int]) -> list[Forward]:
    """The logits are reused, so they are copied."""
    done = []
    for trees in TREES:
        forward = opened.forward([2, 0], roots, Draft.of_trees(trees))
        done.append(Forward([logits_MV.clone() for logits_MV in forward.logits_BMV], forward.features_BMF))
    return done


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_rows_equal_rows_from_python(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    replaying = session(dtype)
    rounds = [forwards(replaying, [9, 10]), forwards(replaying, [11, 12])]
    assert len(replaying._graph_cache) == 3
    monkeypatch.setattr(ops_cpu, "REPLAYED_ROWS", 0)
    plain = session(dtype)
    for replayed, wanted in zip(rounds, [forwards(plain, [9, 10]), forwards(plain, [11, 12])], strict=True):
        for ours, theirs in zip(replayed, wanted, strict=True):
            assert all(map(torch.equal, ours.logits_BMV, theirs.logits_BMV))
            assert ours.features_BMF is not None
            assert theirs.features_BMF is not None
            assert torch.equal(ours.features_BMF, theirs.features_BMF)
    assert not plain._graph_cache


def test_a_graph_follows_the_cache_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for limit in (32, 0):
        monkeypatch.setattr(ops_cpu, "REPLAYED_ROWS", limit)
        opened = session(torch.float32)
        tokens = [9]
        for _ in range(20):
            logits = opened.forward([0], tokens[-1:], Draft.empty(1)).logits_BMV[0]
            opened.cache.extend([0], [1])
            tokens.append(int(logits.argmax()))
        texts.append(tokens)
    assert texts[0] == texts[1]


def test_a_graph_keeps_no_logits() -> None:
    opened = session(torch.float32)
    forwards(opened, [9, 10])
    for graph in opened._graph_cache.values():
        assert graph.logits is not None
        assert all(tensor is None or tuple(tensor.shape) != graph.logits for tensor in graph.kept)


def test_a_placement_outside_the_cache_is_refused() -> None:
    opened = session(torch.float32)
    opened.forward([0], [1], Draft.empty(1))
    opened.cache.lengths[0] = 10_000
    with pytest.raises(AssertionError, match=r"not within|exceeds"):
        opened.forward([0], [1], Draft.empty(1))
