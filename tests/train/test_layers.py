"""The layers that all trainable networks share: the mask of training-time test, norms and rotations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.data.texts import Example
from outrider.train.batch import collate
from outrider.train.objectives import layers
from outrider.train.objectives.layers import Heads, RMSNorm, Rollout


def dense(steps: list[Heads], segments_L: Tensor) -> Tensor:
    """Row (j, t) sees (0, s <= t) of its own text and (i, t) for i = 1..j: as one [steps * L, steps * L] mask."""
    L, num_steps = len(segments_L), len(steps)
    seen = torch.zeros(num_steps, L, num_steps, L, dtype=torch.bool)
    for j in range(num_steps):
        for t in range(L):
            for s in range(t + 1):
                seen[j, t, 0, s] = segments_L[s] == segments_L[t]
            for i in range(1, j + 1):
                seen[j, t, i, t] = True
    queries, keys, values = (torch.cat(parts, 1)[0] for parts in zip(*steps, strict=True))
    num_heads, num_groups = queries.shape[1], keys.shape[1]
    out = []
    for head in range(num_heads):
        group = head * num_groups // num_heads
        scores = queries[:, head] @ keys[:, group].T * queries.shape[-1] ** -0.5
        weights = scores.masked_fill(~seen.flatten(2, 3).flatten(0, 1), -torch.inf).softmax(-1)
        out.append(weights @ values[:, group])
    return torch.stack(out, 1).unflatten(0, (num_steps, L))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    num_steps=st.integers(1, 4),
    chunk=st.sampled_from([1, 2, 5, 256]),
    shape=st.sampled_from([(4, 2, 8), (6, 2, 4), (3, 3, 2)]),
    seed=st.integers(0, 2**30),
)
def test_attention_equals_one_dense_softmax_over_all_steps(
    lengths: list[int], num_steps: int, chunk: int, shape: tuple[int, int, int], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layers.CHUNKS, "cpu", chunk)
        batch = collate([[Example(torch.ones(n, dtype=torch.int64), torch.ones(n).bool()) for n in lengths]], 64)
        H, G, D = shape
        generator = torch.Generator().manual_seed(seed)
        steps = [
            Heads(*(torch.randn(1, sum(lengths), n, D, generator=generator, dtype=torch.float64) for n in (H, G, G)))
            for _ in range(num_steps)
        ]
        rollout = Rollout(batch.causal_BLL())
        got = torch.cat([rollout.attend(heads) for heads in steps])
        torch.testing.assert_close(got, dense(steps, batch.segments_BL[0]), rtol=0, atol=1e-12)


def test_a_norm_keeps_the_precision_of_its_input_and_computes_in_that_of_its_weight() -> None:
    norm = RMSNorm(8, 1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide = x.float()
    want = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight
    assert torch.equal(norm(x), want.bfloat16())
    assert torch.equal(norm(wide), want)
