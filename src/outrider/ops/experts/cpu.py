"""A mixture of experts on the CPU back end: its weights, and the kernels that add it to the residual stream.

    h         = norm(x)
    logits    = W_router h                               in fp32, since a choice has no rounding error
    shared    x += the MLP that all rows go through, if there is one
    choose    experts and shares of each row
    arrange   rows by expert, times share for experts with a gated input
    products  gate and up, then down, of the rows of each expert
    combine   x += share * y, or x += y

The weights of an expert lie where they were packed; kernels find them by a table of addresses.

Example: 4 rows with 8 of 128 experts are 32 pairs, of some 29 different experts, whose weights are read once.

Shapes: R rows, F features, N experts, K experts of a row, P = R * K pairs, I inner features of an expert.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.kernels.cpu.arena import Arena
from outrider.kernels.cpu.experts.linear import expert_linear
from outrider.kernels.cpu.experts.quant import quant_expert_linear
from outrider.kernels.cpu.experts.routing import NORMALISED, SIGMOID, SOFTMAX, arrange, choose, combine
from outrider.kernels.cpu.isa import chosen
from outrider.kernels.cpu.linear import collect
from outrider.kernels.cpu.quant_linear import row_bytes
from outrider.kernels.cpu.rows import ADD, ASSIGN, GATED
from outrider.ops.cpu_packing import Packing, pack_gated, pack_matrices
from outrider.ops.cpu_placement import address, bits_of, floats
from outrider.ops.cpu_products import TICKETS_PER_THREAD, Empty, Launch, kind_of, panel_rows_of, products
from outrider.ops.packed import Mlp, Packed, PackedExperts, Routing
from outrider.ops.quantised import Matrix

__all__ = ["expert_launches", "pack_mixture"]


def pack_mixture(
    arena: Arena,
    packing: Packing,
    router_NF: Matrix,
    mlps: Iterable[Mlp],
    routing: Routing,
    shared: Mlp | None = None,
) -> PackedExperts:
    """Pack a router, each expert in turn, and the MLP that all rows go through.

    Raises:
        CheckpointError: for experts of different kinds.
    """

    def both(gate_IF: Matrix, up_IF: Matrix, down_FI: Matrix) -> tuple[Packed, Packed]:
        return pack_gated(arena, packing, gate_IF, up_IF), pack_matrices(arena, packing, down_FI, None)

    gate_up, down = (list(parts) for parts in zip(*(both(*mlp) for mlp in mlps), strict=True))
    return PackedExperts(
        router=pack_matrices(arena, Packing(dtype=torch.float32), router_NF, None),
        gate_up=_table(gate_up),
        down=_table(down),
        routing=routing,
        shared=None if shared is None else both(*shared),
    )


def _table(experts: list[Packed]) -> Packed:
    """Return all experts as one weight, whose data are their addresses."""
    first = experts[0]
    for number, expert in enumerate(experts):
        if (expert.layout, expert.data.dtype, expert.data.shape) != (first.layout, first.data.dtype, first.data.shape):
            raise CheckpointError(
                f"expert {number} is stored in another kind than expert 0 of its layer, which is not supported; use"
                " weights bf16"
            )
    return Packed(
        in_features=first.in_features,
        out_features=first.out_features,
        num_bytes=sum(expert.num_bytes for expert in experts),
        data=torch.tensor([expert.data.data_ptr() for expert in experts]),
        bias=None,
        layout=first.layout,
        parts=tuple(experts),
    )


def expert_launches(
    x_RF: Tensor, norm_F: Tensor, eps: float, experts: PackedExperts, threads: int, empty: Empty
) -> Iterator[Launch]:
    """Yield the launches that add a mixture of experts to each row.

    Buffers that are in use together have different numbers of axes: `empty` may return the same one for equal shapes.
    """
    routing = experts.routing
    (R, F), N, K = x_RF.shape, len(experts.gate_up.parts), routing.num_chosen
    pairs, inner = R * K, experts.gate_up.out_features // 2
    h_RF, logits_RN = empty(1, 1, R, F)[0, 0], empty(R, N)
    sizes = (N, 1, min(N, pairs), min(N, pairs) + 1, pairs, pairs, pairs)
    record = empty(1, 1, 1, 1, sum(sizes))
    starts = [floats(record) + 4 * sum(sizes[:place]) for place in range(len(sizes))]
    counts, groups, expert, start, order, numbers, shares = starts
    yield Launch(
        collect.address,
        (x_RF, norm_F, h_RF),
        (floats(x_RF), floats(norm_F), bits_of(eps), F, floats(h_RF), F, R),
    )
    if experts.shared is not None:
        gate_up, down_weights = experts.shared
        shared_RI = empty(1, 1, 1, 1, R, gate_up.out_features // 2)[0, 0, 0, 0]
        yield from products(h_RF, None, 0.0, gate_up, shared_RI, GATED, threads, empty)
        yield from products(shared_RI, None, 0.0, down_weights, x_RF, ADD, threads, empty)
    yield from products(h_RF, None, 0.0, experts.router, logits_RN, ASSIGN, threads, empty)
    rule = SIGMOID if routing.gated_input else NORMALISED if routing.normalised else SOFTMAX
    yield Launch(
        choose.address,
        (logits_RN, record),
        (floats(logits_RN), N, K, rule, numbers, shares, R),
    )
    before, behind = (shares, 0) if routing.gated_input else (0, shares)
    rows_PF, inner_PI, out_PF = empty(2, pairs, F)[0], empty(1, 1, pairs, inner), empty(2, pairs, F)[1]
    yield Launch(
        arrange.address,
        (h_RF, record, rows_PF),
        (numbers, N, K, R, counts, groups, expert, start, order, floats(h_RF), F, floats(rows_PF), before),
    )
    found = (record, groups, expert, start)
    yield _product(rows_PF, experts.gate_up, K, inner_PI, GATED, found, threads, empty)
    yield _product(inner_PI, experts.down, K, out_PF, ASSIGN, found, threads, empty)
    yield Launch(
        combine.address,
        (out_PF, record, x_RF),
        (floats(out_PF), order, behind, K, R, F, floats(x_RF)),
    )


def _product(
    x_PF: Tensor,
    weights: Packed,
    K: int,
    out_PO: Tensor,
    mode: int,
    found: tuple[Tensor, int, int, int],
    threads: int,
    empty: Empty,
) -> Launch:
    record, groups, expert, start = found
    first, F, outputs = weights.parts[0], x_PF.shape[-1], out_PO.shape[-1]
    if weights.layout is None:
        kernel, blocks, size = expert_linear, first.data.shape[0], 4 * F
    else:
        kernel, blocks = quant_expert_linear(weights.layout, chosen()), first.data.shape[0] // 2
        size = row_bytes(weights.layout, F)
    panel_rows = panel_rows_of(size)
    scratch = empty(1, 1, 1, 1, threads, panel_rows * size // 4)
    chunk = min(blocks, max(1, -(-blocks * K // (threads * TICKETS_PER_THREAD))))
    return Launch(
        kernel.address,
        (x_PF, scratch, weights.data, out_PO, record),
        (
            floats(x_PF),
            floats(scratch),
            address(weights.data, torch.int64),
            kind_of(first),
            F,
            outputs,
            floats(out_PO),
            mode,
            blocks,
            chunk,
            panel_rows,
            groups,
            expert,
            start,
            0,  # no norm and no bias: kernels take no literal there
        ),
    )
