"""Packed Medusa heads against their formula, and only the heads that a step needs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from outrider.kernels.cpu.isa import has_bf16_dots
from outrider.models.medusa import LM_HEAD, TOKEN_MAP, MedusaShape, layer_name, output_name
from outrider.proposers.medusa import medusa_heads
from outrider.target import Target
from outrider.testing import tiny_target

SHAPE = MedusaShape(num_heads=3, num_layers=2, hidden_size=16, vocab_size=31, num_columns=31, bias=True, output="own")
SHAPES = [
    SHAPE,
    replace(SHAPE, num_layers=1, bias=False),
    replace(SHAPE, output="one"),
    replace(SHAPE, output="target"),
    replace(SHAPE, num_columns=7),
    replace(SHAPE, num_columns=7, output="one"),
    replace(SHAPE, num_columns=7, output="target"),
]


def random_weights(shape: MedusaShape, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = shape.tensor_shapes()
    weights = {name: torch.randn(size, generator=draw, dtype=torch.float64) for name, size in sizes.items()}
    if shape.is_reduced:
        weights[TOKEN_MAP] = torch.randperm(31, generator=draw)[:7].sort().values
    return weights


def by_hand(shape: MedusaShape, weights: dict[str, Tensor], target: Target, head: int, h_E: Tensor) -> Tensor:
    for layer in range(shape.num_layers):
        z_E = weights[layer_name(head, layer, "weight")] @ h_E
        if shape.bias:
            z_E = z_E + weights[layer_name(head, layer, "bias")]
        h_E = h_E + z_E / (1 + torch.exp(-z_E))
    head_VE = target.shared_weights().head_VE
    shared_KE = head_VE if not shape.is_reduced else head_VE[weights[TOKEN_MAP]]
    return {"own": weights.get(output_name(head)), "one": weights.get(LM_HEAD), "target": shared_KE}[shape.output] @ h_E  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.output}-{shape.num_columns}-{shape.num_layers}")
def test_every_head_is_its_formula(shape: MedusaShape) -> None:
    target = tiny_target()
    weights = random_weights(shape)
    heads = medusa_heads(shape, weights, target)
    states_BE = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    depths = [2, 0, 3, 1]
    logits = heads.predict(states_BE, depths)
    assert [len(logits_RK) for logits_RK in logits] == [3, 2, 1]
    for head, logits_RK in enumerate(logits):
        slots = [slot for slot, depth in enumerate(depths) if depth > head]
        for slot, logits_K in zip(slots, logits_RK, strict=True):
            want_K = by_hand(shape, weights, target, head, states_BE[slot])
            assert (logits_K - want_K).abs().max() < 1e-12


def test_no_room_needs_no_head() -> None:
    heads = medusa_heads(SHAPE, random_weights(SHAPE), tiny_target())
    states_BE = torch.zeros(2, 16, dtype=torch.float64)
    assert heads.predict(states_BE, [0, 0]) == []
    assert len(heads.predict(states_BE, [1, 0])) == 1


@pytest.mark.parametrize(
    ("dtype", "kept_in", "tolerance"),
    [
        (torch.float32, "int8", 1e-4),
        (torch.bfloat16, "target", 0.01 if has_bf16_dots() else 1e-4),
        (torch.bfloat16, "int8", 0.03),
    ],
)
def test_the_compiled_kernels_agree(
    dtype: torch.dtype, kept_in: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_DRAFT_WEIGHTS", kept_in)
    weights = {name: weight.to(dtype).double() for name, weight in random_weights(SHAPE).items()}
    states_BE = torch.randn(2, 16, generator=torch.Generator().manual_seed(1)).double()
    fast = medusa_heads(SHAPE, weights, tiny_target(dtype=dtype)).predict(states_BE, [3, 3])
    slow = medusa_heads(SHAPE, weights, tiny_target()).predict(states_BE, [3, 3])
    for fast_RK, slow_RK in zip(fast, slow, strict=True):
        assert (fast_RK - slow_RK).abs().max() < tolerance * slow_RK.abs().max()


def test_memory_counts_what_is_not_the_targets() -> None:
    target = tiny_target()
    layers = 3 * 2 * (16 * 16 + 16) * 8
    sizes = {
        output: medusa_heads(replace(SHAPE, output=output), random_weights(replace(SHAPE, output=output)), target)
        for output in ("own", "one", "target")
    }
    assert sizes["target"].num_bytes == layers
    assert sizes["one"].num_bytes == layers + 31 * 16 * 8
    assert sizes["own"].num_bytes == layers + 3 * 31 * 16 * 8
