"""A mixture of experts in plain PyTorch.

    p      = softmax(W_router h)
    out    = sum over the chosen e of p_e * MLP_e(h)                                    (Shazeer et al. 2017)
    out    = MLP_shared(h) + sum over the chosen e of MLP_e(sigmoid(W_router h)_e * h)  (Llama 4)
    MLP    = W_down (silu(W_gate h) * W_up h)

Shapes depend on the number of rows alone, so that a forward can be recorded: few rows gather the weights of their
experts, many rows go through every expert and count where they chose it.

Example: with 128 experts of which a row takes 8, up to 16 rows gather.

Shapes: R rows, F features, N experts, K experts of a row, I inner features of an expert.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from outrider.ops.packed import Mlp, Packed, PackedExperts, Routing
from outrider.ops.quantised import Matrix, dense

__all__ = ["mixed", "stacked"]


def stacked(
    pack: Callable[[Matrix], Packed],
    router_NF: Matrix,
    mlps: Iterable[Mlp],
    routing: Routing,
    shared: Mlp | None = None,
) -> PackedExperts:
    """Pack experts one on the other, with the device and the dtype of `pack`."""
    router = pack(router_NF)
    both, downs = [], []
    for gate_IF, up_IF, down_FI in mlps:
        both.append(dense([gate_IF, up_IF]).to(router.data))
        downs.append(dense(down_FI).to(router.data))
    gate_up, down = (_stack(parts) for parts in (both, downs))
    return PackedExperts(
        router=router,
        gate_up=gate_up,
        down=down,
        routing=routing,
        shared=None if shared is None else (pack(dense(shared[:2])), pack(shared[2])),
    )


def _stack(matrices: list[Tensor]) -> Packed:
    data_NOF = torch.stack(matrices)
    _, out_features, in_features = data_NOF.shape
    return Packed(
        in_features=in_features, out_features=out_features, num_bytes=data_NOF.nbytes, data=data_NOF, bias=None
    )


def mixed(h_RF: Tensor, experts: PackedExperts) -> Tensor:
    """Return what the experts of each row make of it, [R, F]."""
    numbers_RK, shares_RK = _chosen(linear(h_RF, experts.router.data), experts)
    N, (R, K), is_input = len(experts.gate_up.data), numbers_RK.shape, experts.routing.gated_input
    total_RF = torch.zeros_like(h_RF)
    if experts.shared is not None:
        gate_up, down = experts.shared
        total_RF += linear(_gated(linear(h_RF, gate_up.data)), down.data)
    if R * K <= N:
        numbers, shares_R1 = numbers_RK.flatten(), shares_RK.view(-1, 1)
        rows = h_RF.repeat_interleave(K, 0)
        both = (experts.gate_up.data[numbers] @ (rows * shares_R1 if is_input else rows)[..., None])[..., 0]
        out = (experts.down.data[numbers] @ _gated(both)[..., None])[..., 0]
        return total_RF + (out if is_input else out * shares_R1).view(R, K, -1).sum(1)
    for number in range(N):
        # a share of 0 leaves nothing of an input either: silu(0) * 0 = 0
        share_R1 = torch.where(numbers_RK == number, shares_RK, 0).sum(1, keepdim=True)
        inner_RI = _gated(linear(share_R1 * h_RF if is_input else h_RF, experts.gate_up.data[number]))
        out_RF = linear(inner_RI, experts.down.data[number])
        total_RF += out_RF if is_input else share_R1 * out_RF
    return total_RF


def _chosen(logits_RN: Tensor, experts: PackedExperts) -> tuple[Tensor, Tensor]:
    """Return the numbers of each row's experts, ascending, and their shares of its output."""
    wide = torch.promote_types(logits_RN.dtype, torch.float32)
    order_RN = logits_RN.argsort(dim=-1, descending=True, stable=True)
    numbers_RK = order_RN[:, : experts.routing.num_chosen].sort(dim=-1).values
    logits_RN = logits_RN.to(wide)
    shares_RK = (logits_RN.sigmoid() if experts.routing.gated_input else logits_RN.softmax(-1)).gather(1, numbers_RK)
    if experts.routing.normalised and not experts.routing.gated_input:
        shares_RK = shares_RK / shares_RK.sum(-1, keepdim=True)
    return numbers_RK, shares_RK.to(experts.router.data.dtype)


def _gated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return silu(gate) * up
