"""A mixture of experts in plain PyTorch.

    p      = softmax(W_router h)
    out    = sum over the chosen e of p_e * W_down_e (silu(W_gate_e h) * W_up_e h)      (Shazeer et al. 2017)

Shapes depend on the number of rows alone, so that a forward can be recorded: few rows gather the weights of their
experts, many rows go through every expert and count where they chose it.

Example: with 128 experts of which a row takes 8, up to 16 rows gather.

Shapes: R rows, F features, N experts, K experts of a row, I inner features of an expert.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from outrider.ops.base import Packed, PackedExperts
from outrider.ops.quantised import Matrix, dense

__all__ = ["mixed", "stacked"]


def stacked(
    pack: Callable[[Matrix], Packed],
    router_NF: Matrix,
    mlps: Iterable[tuple[Matrix, Matrix, Matrix]],
    *,
    num_chosen: int,
    normalised: bool,
) -> PackedExperts:
    """Pack experts one on the other, with the device and the dtype of `pack`."""
    router = pack(router_NF)
    both, downs = [], []
    for gate_IF, up_IF, down_FI in mlps:
        both.append(dense([gate_IF, up_IF]).to(router.data))
        downs.append(dense(down_FI).to(router.data))
    gate_up, down = (_stack(parts) for parts in (both, downs))
    return PackedExperts(router=router, gate_up=gate_up, down=down, num_chosen=num_chosen, normalised=normalised)


def _stack(matrices: list[Tensor]) -> Packed:
    data_NOF = torch.stack(matrices)
    _, out_features, in_features = data_NOF.shape
    return Packed(
        in_features=in_features, out_features=out_features, num_bytes=data_NOF.nbytes, data=data_NOF, bias=None
    )


def mixed(h_RF: Tensor, experts: PackedExperts) -> Tensor:
    """Return what the experts of each row make of it, [R, F]."""
    numbers_RK, shares_RK = _chosen(linear(h_RF, experts.router.data), experts)
    N, (R, K) = len(experts.gate_up.data), numbers_RK.shape
    if R * K <= N:
        numbers = numbers_RK.flatten()
        both = (experts.gate_up.data[numbers] @ h_RF.repeat_interleave(K, 0)[..., None])[..., 0]
        out = (experts.down.data[numbers] @ _gated(both)[..., None])[..., 0]
        return (out.view(R, K, -1) * shares_RK[..., None]).sum(1)
    total_RF = torch.zeros_like(h_RF)
    for number in range(N):
        share_R1 = torch.where(numbers_RK == number, shares_RK, 0).sum(1, keepdim=True)
        inner_RI = _gated(linear(h_RF, experts.gate_up.data[number]))
        total_RF += share_R1 * linear(inner_RI, experts.down.data[number])
    return total_RF


def _chosen(logits_RN: Tensor, experts: PackedExperts) -> tuple[Tensor, Tensor]:
    """Return the numbers of each row's experts, ascending, and their shares of its output."""
    wide = torch.promote_types(logits_RN.dtype, torch.float32)
    order_RN = logits_RN.argsort(dim=-1, descending=True, stable=True)
    numbers_RK = order_RN[:, : experts.num_chosen].sort(dim=-1).values
    shares_RK = logits_RN.to(wide).softmax(-1).gather(1, numbers_RK)
    if experts.normalised:
        shares_RK = shares_RK / shares_RK.sum(-1, keepdim=True)
    return numbers_RK, shares_RK.to(logits_RN.dtype)


def _gated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return silu(gate) * up
