"""Chunked attention and growing queries: every back end against the definition, down prompts, chains and trees."""

from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft, Tree
from outrider.ops.base import AttentionShape, Ops, Rope
from outrider.ops.cpu import CpuOps
from outrider.ops.torch import TorchOps
from outrider.placement import Placement, place_chunk, place_draft

CHUNK, HEADS, SIZE = 5, 2, 4
SHAPE = AttentionShape(num_heads=HEADS, num_kv_heads=1, head_dim=SIZE, scale=0.5, chunk=CHUNK)
STILL = Rope(cos_PD=torch.ones(64, SIZE // 2), sin_PD=torch.zeros(64, SIZE // 2))
BACK_ENDS: list[Any] = [TorchOps(torch.float32), TorchOps(torch.float32, fused=True), CpuOps(torch.float32, threads=1)]


def rows(count: int) -> Tensor:
    return torch.randn(count, (HEADS + 2) * SIZE, generator=torch.Generator().manual_seed(count))


def written_out(qkv_TQ: Tensor) -> Tensor:
    """Each position attends to those of its chunk up to itself."""
    q_THD, k_TGD, v_TGD = qkv_TQ.view(len(qkv_TQ), HEADS + 2, SIZE).double().split([HEADS, 1, 1], dim=1)
    out = []
    for at in range(len(qkv_TQ)):
        seen = slice(at // CHUNK * CHUNK, at + 1)
        shares_HS = (0.5 * q_THD[at] @ k_TGD[seen, 0].T).softmax(-1)
        out.append((shares_HS @ v_TGD[seen, 0]).flatten())
    return torch.stack(out).float()


def opened(ops: Ops) -> KVCache:
    plan = CachePlan(
        num_layers=1,
        num_slots=1,
        num_kv_heads=1,
        head_dim=SIZE,
        capacity=40,
        tail=9,
        dtype=torch.float32,
        transposed_keys=ops.transposes_keys,
    )
    return KVCache(plan)


def attended(ops: Ops, cache: KVCache, qkv_TQ: Tensor, placement: Placement) -> Tensor:
    near = placement.within(None, CHUNK)
    return ops.attend(qkv_TQ.contiguous(), SHAPE, STILL, cache.keys_LCHSD[0], cache.values_LCHSD[0], near)


@pytest.mark.parametrize("ops", BACK_ENDS, ids=["torch", "fused", "cpu"])
@pytest.mark.parametrize("first", [3, 5, 8])
def test_prompts_chains_and_trees_see_their_chunk(ops: Ops, first: int) -> None:
    qkv_TQ, cache = rows(24), opened(ops)
    found = [attended(ops, cache, qkv_TQ[:first], place_chunk(cache, [0], [first]))]
    cache.extend([0], [first])
    middle = first + 6
    found.append(attended(ops, cache, qkv_TQ[first:middle], place_draft(cache, [0], Draft.of_chains([[1] * 5]))))
    cache.commit([0], [[1, 2, 3, 4, 5]])
    torch.testing.assert_close(torch.cat(found), written_out(qkv_TQ[:middle]), atol=1e-5, rtol=1e-5)
    # below the root the branches of rows 1 2 4 6 and 3 5
    tree = Draft.of_trees([Tree([1, 2, 3, 4, 5, 6], [-1, 0, -1, 1, 2, 3])])
    drawn_MQ = qkv_TQ[middle : middle + 7]
    found_MD = attended(ops, cache, drawn_MQ, place_draft(cache, [0], tree))
    for branch in ([0, 1, 2, 4, 6], [0, 3, 5]):
        wanted = written_out(torch.cat([qkv_TQ[:middle], drawn_MQ[branch]]))[middle:]
        torch.testing.assert_close(found_MD[branch], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ops", [BACK_ENDS[0], BACK_ENDS[2]], ids=["torch", "cpu"])
def test_queries_grow_with_their_positions(ops: Ops) -> None:
    cache, x_RF = opened(ops), rows(6)
    cache.extend([0], [4])
    placement = place_draft(cache, [0], Draft.of_trees([Tree([1, 2, 3, 4, 5], [-1, -1, 0, 1, 2])]))
    found = x_RF.clone()
    ops.grow(found, HEADS * SIZE, torch.arange(64).float() + 1, placement)
    factors_R1 = torch.tensor([5, 6, 6, 7, 7, 8])[:, None]
    assert torch.equal(found[:, HEADS * SIZE :], x_RF[:, HEADS * SIZE :])
    assert torch.equal(found[:, : HEADS * SIZE], x_RF[:, : HEADS * SIZE] * factors_R1)
