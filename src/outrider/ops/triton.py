"""The decoder's operations for a GPU: cuBLAS for the products, five Triton kernels for everything else.

A layer is ten launches (see `kernels/triton.py`); the product itself adds the residual. Prompt chunks have enough rows
for PyTorch's fused attention, so only steps use the split kernel. Legend in `ops/base.py`.

    norm, product | place, partial, merge | product + residual | norm, product, gated | product + residual

The number of parts is chosen so that the launch fills the device: with 4 key heads, 64 parts of the cache for 1 slot, 4
for 16 slots.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import gelu, linear

from outrider.kernels import triton as kernels
from outrider.ops.base import Activation, AttentionShape, HeadNorm, Mlp, Ops, Packed, PackedExperts, Rope, Routing
from outrider.ops.graph_buckets import Replayer
from outrider.ops.graphs import GraphPool
from outrider.ops.quantised import Matrix
from outrider.ops.torch import TorchOps, attend_fused
from outrider.placement import Placement

__all__ = ["TritonOps"]

STEP_ROWS = 64
"""Most rows of a slot for which attention is split along the cache; longer chunks fill the device anyway."""
PROGRAMS = 256
"""Target number of programs per launch of split attention: about two per multiprocessor of a large GPU."""
BLOCK = 64
MAX_PARTS = 64


class _Tiling(NamedTuple):
    """Rows of a tile, the number of tiles, and the number of parts of the cache."""

    rows: int
    tiles: int
    parts: int

    @classmethod
    def of(cls, B: int, M: int, shape: AttentionShape, num_positions: int) -> "_Tiling":
        group_rows = M * (shape.num_heads // shape.num_kv_heads)
        rows = min(64, max(16, triton.next_power_of_2(group_rows)))
        tiles = triton.cdiv(group_rows, rows)
        most = min(MAX_PARTS, triton.cdiv(num_positions, BLOCK))
        return cls(rows, tiles, max(1, min(most, PROGRAMS // (B * shape.num_kv_heads * tiles))))


@final
class TritonOps(Ops):
    """Weights and activations of `dtype` on `device`. Without a GPU the kernels need TRITON_INTERPRET=1."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str, *, graphs: GraphPool | None = None) -> None:
        self._plain = TorchOps(dtype, device)
        self._dtype = dtype
        self._wide = tl.float64 if dtype == torch.float64 else tl.float32
        self._replayer = None if graphs is None else Replayer(graphs, limited=False)

    @property
    def activation_dtype(self) -> torch.dtype:
        return self._dtype

    def pack(self, weight_OF: Matrix | Sequence[Matrix], bias_O: Tensor | None = None) -> Packed:
        return self._plain.pack(weight_OF, bias_O)

    def unpack(self, packed: Packed) -> Tensor:
        return packed.data

    def pack_gate_up(self, gate_IF: Matrix, up_IF: Matrix) -> Packed:
        return self._plain.pack_gate_up(gate_IF, up_IF)

    def pack_experts(
        self, router_NF: Matrix, mlps: Iterable[Mlp], routing: Routing, shared: Mlp | None = None
    ) -> PackedExperts:
        return self._plain.pack_experts(router_NF, mlps, routing, shared)

    def embed(self, table_VF: Tensor | Packed, tokens_R: Tensor) -> Tensor:
        return self._plain.embed(table_VF, tokens_R)

    def norm_project(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed) -> Tensor:
        if norm_F is not None:
            normed_RF = torch.empty_like(x_RF)
            self._norm(x_RF, norm_F, eps, normed_RF)
            x_RF = normed_RF
        return linear(x_RF, packed.data, packed.bias)

    def _norm(self, x_RF: Tensor, norm_F: Tensor, eps: float, out_RF: Tensor) -> None:
        R, F = x_RF.shape
        grid, width = (R,), triton.next_power_of_2(F)
        warps = min(16, max(4, width // 512))
        kernels.norm[grid](x_RF, norm_F, out_RF, F, out_RF.stride(0), eps, WIDE=self._wide, N=width, num_warps=warps)

    def project_add(self, x_RF: Tensor, packed: Packed, residual_RO: Tensor) -> None:
        residual_RO.addmm_(x_RF, packed.data.t())
        if packed.bias is not None:
            residual_RO += packed.bias

    def project_norm_add(self, x_RF: Tensor, packed: Packed, norm_O: Tensor, eps: float, residual_RO: Tensor) -> None:
        out_RO = linear(x_RF, packed.data, packed.bias)
        self._norm(out_RO, norm_O, eps, out_RO)
        residual_RO += out_RO

    def scale(self, x_RF: Tensor, factor: float) -> None:
        x_RF *= factor

    def grow(self, x_RF: Tensor, num_columns: int, factors_P: Tensor, placement: Placement) -> None:
        x_RF[:, :num_columns] *= factors_P[placement.positions_BM].view(-1, 1)

    def gate_up(
        self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed, activation: Activation = "silu"
    ) -> Tensor:
        if activation != "silu":
            gate_RI, up_RI = self.norm_project(x_RF, norm_F, eps, packed).chunk(2, dim=-1)
            return gelu(gate_RI, approximate="tanh") * up_RI
        both_RI = self.norm_project(x_RF, norm_F, eps, packed)
        R, inner = both_RI.shape[0], packed.out_features // 2
        out_RI = both_RI.new_empty(R, inner)
        kernels.gated[(R, triton.cdiv(inner, 1024))](both_RI, out_RI, inner, WIDE=self._wide, N=1024)
        return out_RI

    def add_experts(self, x_RF: Tensor, norm_F: Tensor, eps: float, experts: PackedExperts) -> None:
        self._plain.add_experts(x_RF, norm_F, eps, experts)

    def attend(
        self,
        qkv_RQ: Tensor,
        shape: AttentionShape,
        rope: Rope,
        keys_CHSD: Tensor,
        values_CHSD: Tensor,
        placement: Placement,
        head_norm: HeadNorm | None = None,
    ) -> Tensor:
        B, M = placement.positions_BM.shape
        q_RHD = qkv_RQ.new_empty(B * M, shape.num_heads, shape.head_dim)
        self._place(qkv_RQ, q_RHD, shape, rope, keys_CHSD, values_CHSD, placement, head_norm)
        if M > STEP_ROWS or shape.chunk is not None:
            return attend_fused(q_RHD.view(B, M, *q_RHD.shape[1:]), shape, keys_CHSD, values_CHSD, placement)
        return self._split(q_RHD, shape, keys_CHSD, values_CHSD, placement).flatten(1)

    def store(
        self,
        qkv_RQ: Tensor,
        shape: AttentionShape,
        rope: Rope,
        keys_CHSD: Tensor,
        values_CHSD: Tensor,
        placement: Placement,
        head_norm: HeadNorm | None = None,
    ) -> None:
        q_RHD = qkv_RQ.new_empty(len(qkv_RQ), shape.num_heads, shape.head_dim)
        self._place(qkv_RQ, q_RHD, shape, rope, keys_CHSD, values_CHSD, placement, head_norm)

    def _place(
        self,
        qkv_RQ: Tensor,
        q_RHD: Tensor,
        shape: AttentionShape,
        rope: Rope,
        keys_CHSD: Tensor,
        values_CHSD: Tensor,
        placement: Placement,
        head_norm: HeadNorm | None,
    ) -> None:
        H, G, D = shape.num_heads, shape.num_kv_heads, shape.head_dim
        kernels.place[(len(q_RHD), H + 2 * G)](
            qkv_RQ,
            q_RHD,
            keys_CHSD,
            values_CHSD,
            rope.cos_PD,
            rope.sin_PD,
            q_RHD if head_norm is None else head_norm.query_D,
            q_RHD if head_norm is None else head_norm.key_D,
            placement.slots_B,
            placement.positions_BM.contiguous(),
            placement.write_BM.contiguous(),
            placement.positions_BM.shape[1],
            keys_CHSD.shape[2],
            0.0 if head_norm is None else head_norm.eps,
            H=H,
            G=G,
            D=D,
            NORM=head_norm is not None,
            WIDE=self._wide,
            N=triton.next_power_of_2(D // 2),
        )

    def _split(
        self, q_RHD: Tensor, shape: AttentionShape, keys_CHSD: Tensor, values_CHSD: Tensor, placement: Placement
    ) -> Tensor:
        B, M = placement.positions_BM.shape
        H, G, D, S = shape.num_heads, shape.num_kv_heads, shape.head_dim, keys_CHSD.shape[2]
        mask = placement.mask_BMT
        tiling = _Tiling.of(B, M, shape, S)
        rows, parts = tiling.rows * tiling.tiles, tiling.parts
        wide = torch.float64 if self._dtype == torch.float64 else torch.float32
        out_BGPYD = q_RHD.new_empty(B * G, parts, rows, D, dtype=wide)
        top_BGPY, sum_BGPY = out_BGPYD.new_empty(2, B * G, parts, rows)
        fixed: dict[str, Any] = {"H": H, "G": G, "D": D, "WIDE": self._wide}
        fixed["WIDTH"] = max(16, triton.next_power_of_2(D))
        kernels.partial[(B * G, parts, tiling.tiles)](
            q_RHD,
            keys_CHSD,
            values_CHSD,
            placement.slots_B,
            placement.lengths_B,
            placement.positions_BM.contiguous(),
            q_RHD if mask is None else mask.contiguous().view(torch.uint8),
            out_BGPYD,
            top_BGPY,
            sum_BGPY,
            M,
            M if mask is None else mask.shape[2],
            S,
            parts,
            shape.scale,
            shape.sliding_window or 0,
            MASKED=mask is not None,
            WINDOWED=shape.sliding_window is not None,
            Y=tiling.rows,
            BLOCK=BLOCK,
            **fixed,
        )
        out_RHD = torch.empty_like(q_RHD)
        width = triton.next_power_of_2(parts)
        kernels.merge[(len(q_RHD), H)](out_BGPYD, top_BGPY, sum_BGPY, out_RHD, M, parts, rows, PARTS=width, **fixed)
        return out_RHD

    def collect(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, out_RT: Tensor, column: int) -> None:
        goal_RF = out_RT[:, column : column + x_RF.shape[1]]
        if norm_F is None:
            goal_RF.copy_(x_RF)
        else:
            self._norm(x_RF, norm_F, eps, goal_RF)
