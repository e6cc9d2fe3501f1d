"""Mixtures of experts: both back ends against each other, and the bits of a row alone and in any company."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from outrider.errors import CheckpointError
from outrider.ops.base import Ops
from outrider.ops.cpu import CpuOps
from outrider.ops.packed import PackedExperts, Routing
from outrider.ops.quantised import Matrix
from outrider.ops.rounding import rounded
from outrider.ops.torch import TorchOps

NUM_EXPERTS, CHOSEN = 9, 3
Mlps = list[tuple[Tensor, Tensor, Tensor]]


def drawn(width: int, inner: int, seed: int = 0) -> tuple[Tensor, Mlps]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    mlps = [(matrix(inner, width), matrix(inner, width), matrix(width, inner)) for _ in range(NUM_EXPERTS)]
    return 3 * matrix(NUM_EXPERTS, width), mlps


def rows(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def packed(
    ops: Ops, router: Tensor, mlps: Mlps, kind: Callable[[Tensor], Matrix] = lambda matrix: matrix, **changes: bool
) -> PackedExperts:
    kinds = [(kind(gate), kind(up), kind(down)) for gate, up, down in mlps]
    return ops.pack_experts(router, kinds, Routing(CHOSEN, **changes))


def added(ops: Ops, x: Tensor, experts: PackedExperts) -> Tensor:
    out = x.to(ops.activation_dtype).clone()
    ops.add_experts(out, torch.ones(x.shape[1], dtype=out.dtype), 1e-6, experts)
    return out


def mlp_of(h_F: Tensor, mlp: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    gate, up, down = (matrix.double() for matrix in mlp)
    return linear(silu(linear(h_F, gate)) * linear(h_F, up), down)


def written_out(x: Tensor, router: Tensor, mlps: Mlps, normalised: bool) -> Tensor:
    """The definition, row by row, in fp64."""
    out = []
    for x_F in x.double():
        h_F = x_F / (x_F.square().mean() + 1e-6).sqrt()
        shares, numbers = linear(h_F, router.double()).softmax(-1).topk(CHOSEN)
        shares = shares / shares.sum() if normalised else shares
        for share, number in zip(shares, numbers.tolist(), strict=True):
            x_F = x_F + share * mlp_of(h_F, mlps[number])
        out.append(x_F)
    return torch.stack(out)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("ops", [TorchOps(torch.float64), CpuOps(torch.float32, threads=2)], ids=["torch", "cpu"])
def test_experts_are_their_definition(ops: Ops, count: int, normalised: bool) -> None:
    router, mlps = drawn(36, 20)
    found = added(ops, rows(count, 36), packed(ops, router, mlps, normalised=normalised))
    limit = 1e-12 if ops.activation_dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        found.double(), written_out(rows(count, 36), router, mlps, normalised), atol=limit, rtol=0
    )


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("ops", [TorchOps(torch.float64), CpuOps(torch.float32, threads=2)], ids=["torch", "cpu"])
def test_llama_4_multiplies_inputs_and_has_a_shared_expert(ops: Ops, count: int) -> None:
    router, mlps = drawn(36, 20)
    shared, x_RF = drawn(36, 20, seed=1)[1][0], rows(count, 36)
    wanted = []
    for x_F in x_RF.double():
        h_F = x_F / (x_F.square().mean() + 1e-6).sqrt()
        logits, numbers = linear(h_F, router.double()).topk(CHOSEN)
        routed = [
            mlp_of(logit.sigmoid() * h_F, mlps[number]) for logit, number in zip(logits, numbers.tolist(), strict=True)
        ]
        wanted.append(x_F + mlp_of(h_F, shared) + torch.stack(routed).sum(0))
    found = added(ops, x_RF, ops.pack_experts(router, mlps, Routing(CHOSEN, gated_input=True), shared))
    limit = 1e-12 if ops.activation_dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), torch.stack(wanted), atol=limit, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_experts_are_those_of_their_codes(kind: str) -> None:
    router, mlps = drawn(64, 32)
    ops = CpuOps(torch.float32, threads=1)
    experts = packed(ops, router, mlps, lambda matrix: rounded(matrix, kind))
    wide = TorchOps(torch.float32)
    exact = added(wide, rows(20, 64), packed(wide, router, mlps, lambda matrix: rounded(matrix, kind)))
    # activations have 8 bits
    assert (added(ops, rows(20, 64), experts) - exact).norm() <= 0.02 * (exact - rows(20, 64)).norm()
    assert experts.num_bytes < 0.4 * packed(ops, router, mlps).num_bytes


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_row_alone_has_the_bits_it_has_in_company(kind: str) -> None:
    """Rows as wide as those of large models: a crowd on one expert is computed in several panels."""
    router, mlps = drawn(2048, 32)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    x_RF = rows(95, 2048)
    x_RF[7:90] = x_RF[6] + 0.01 * x_RF[7:90]
    found = []
    for threads in (1, 3):
        ops = CpuOps(dtype, threads=threads)
        experts = packed(ops, router, mlps, (lambda matrix: rounded(matrix, "int8")) if kind == "int8" else lambda m: m)
        found.append(added(ops, x_RF, experts))
        alone = torch.cat([added(ops, x_RF[row : row + 1], experts) for row in range(len(x_RF))])
        assert torch.equal(alone, found[-1])
    assert torch.equal(*found)


def test_a_row_alone_has_its_bits_beside_a_shared_expert() -> None:
    router, mlps = drawn(256, 32)
    ops = CpuOps(torch.bfloat16, threads=2)
    experts = ops.pack_experts(router, mlps, Routing(1, gated_input=True), mlps[0])
    x_RF = rows(30, 256)
    alone = torch.cat([added(ops, x_RF[row : row + 1], experts) for row in range(len(x_RF))])
    assert torch.equal(alone, added(ops, x_RF, experts))


def test_of_equal_logits_the_first_experts_are_chosen() -> None:
    _, mlps = drawn(32, 16)
    router = torch.zeros(NUM_EXPERTS, 32)
    for ops in (TorchOps(torch.float32), CpuOps(torch.float32, threads=1)):
        found = added(ops, rows(2, 32), packed(ops, router, mlps))
        alike = [mlps[number] if number < CHOSEN else (*mlps[number][:2], 0 * mlps[number][2]) for number in range(9)]
        assert torch.equal(found, added(ops, rows(2, 32), packed(ops, router, alike)))


def test_rows_that_are_not_numbers_stay_within_their_memory() -> None:
    router, mlps = drawn(32, 16)
    ops = CpuOps(torch.float32, threads=1)
    x_RF = rows(3, 32)
    x_RF[1] = torch.nan
    experts = packed(ops, router, mlps)
    found = added(ops, x_RF, experts)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], added(ops, x_RF[[0, 2]], experts))


def test_experts_of_two_kinds_are_refused() -> None:
    router, mlps = drawn(64, 32)
    mixed = [(gate, up, down if number else rounded(down, "int8")) for number, (gate, up, down) in enumerate(mlps)]
    with pytest.raises(CheckpointError, match="expert 1 is stored in another kind than expert 0 of its layer"):
        CpuOps(torch.float32).pack_experts(router, mixed, Routing(CHOSEN))
