"""Graphs: what a replay computes, what it shares, and what may not be recorded."""

import pytest
import torch
from torch import Tensor

from outrider.ops.graphs import EagerGraph, GraphPool


def test_a_replay_computes_from_what_the_buffers_hold(device: str) -> None:
    graphs = GraphPool(device)
    x, total = torch.ones(4, device=device), torch.zeros(4, device=device)

    def step() -> Tensor:
        doubled = x.view(2, 2) * 2
        total.add_(doubled.flatten())
        return doubled[0] + torch.arange(2, device=device)

    graph = graphs.record(step)
    total.zero_()
    for value in (3.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert graph.result.tolist() == [2 * value, 2 * value + 1]
    assert total.tolist() == [16.0] * 4
    assert graphs.num_captured == 1


def test_the_host_is_not_asked_again(device: str) -> None:
    x, factor = torch.ones(2, device=device), [2]
    graph = GraphPool(device).record(lambda: x * factor[0])
    factor[0] = 7
    graph.replay()
    assert graph.result.tolist() == [2.0, 2.0]


def test_results_keep_their_place(device: str) -> None:
    x = torch.zeros(3, device=device)
    graph = GraphPool(device).record(lambda: (x + 1).sort().values)
    place = graph.result.data_ptr()
    x.copy_(torch.tensor([5.0, 1.0, 3.0]))
    graph.replay()
    assert graph.result.data_ptr() == place
    assert graph.result.tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    "waits",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0, 2.0])],
    ids=["a number", "a shape", "a constant"],
)
def test_a_tape_refuses_what_a_graph_refuses(waits) -> None:
    x = torch.ones(2)
    with pytest.raises(RuntimeError, match="waits for the host"):
        EagerGraph(lambda: waits(x))


def test_views_are_not_repeated() -> None:
    x = torch.ones(2, 3)
    graph = EagerGraph(lambda: x.t().reshape(-1).view(3, 2)[1:] + 1)
    assert graph.num_operations == 2  # the reshape of a transposed tensor copies
    assert graph.num_bytes == 24 + 16
