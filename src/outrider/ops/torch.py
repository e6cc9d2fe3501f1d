"""The decoder's operations in plain PyTorch: any device, any dtype. The reference for every other back end.

Norms, rotations and softmax run in fp32 (in fp64 when that is the dtype), products in the dtype of the weights. No
operation waits for the device, and shapes depend only on the placement's host-side numbers, so that a forward can be
recorded and repeated (`ops/graph_buckets.py`).

Attention is either written out, which is the reference, or PyTorch's fused kernel (`fused=True`, used on a GPU). There
the query heads that share a key head become rows of one head, so no key or value is repeated:

    q [B, H, M, D] -> [B, G, (H / G) * M, D],   keys [B, G, S, D],   one mask for prefix and tail

Legend in `ops/base.py`.

>>> ops = TorchOps(torch.float64)
>>> eye = ops.pack(torch.eye(2, dtype=torch.float64))
>>> ops.norm_project(torch.tensor([[3.0, 4.0]], dtype=torch.float64), None, 0.0, eye).tolist()
[[3.0, 4.0]]
"""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

from outrider.cache import SCALE_BYTES
from outrider.ops.base import Activation, AttentionShape, HeadNorm, Mlp, Ops, Packed, PackedExperts, Rope, Routing
from outrider.ops.experts.torch import mixed, stacked
from outrider.ops.graph_buckets import Replayer
from outrider.ops.graphs import GraphPool
from outrider.ops.quantised import Matrix, dense
from outrider.placement import Placement

__all__ = ["TorchOps", "attend_fused", "restored", "rms_norm", "rotate", "stored", "visible_BMS"]


@final
class TorchOps(Ops):
    """Weights and activations of `dtype` on `device`.

    Args:
        fused: use PyTorch's fused attention kernel instead of the reference.
        graphs: the pool that records forwards; without it every call runs anew.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        fused: bool = False,
        graphs: GraphPool | None = None,
    ) -> None:
        self._dtype = dtype
        self._device = torch.device(device)
        self._fused = fused
        self._replayer = None if graphs is None else Replayer(graphs, limited=True)

    @property
    def activation_dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def caches_int8(self) -> bool:
        return self._device.type == "cpu"

    def pack(self, weight_OF: Matrix | Sequence[Matrix], bias_O: Tensor | None = None) -> Packed:
        data = dense(weight_OF).detach().to(self._device, self._dtype, copy=True).contiguous()
        bias = None if bias_O is None else bias_O.detach().to(self._device, self._dtype, copy=True)
        num_bytes = data.nbytes + (0 if bias is None else bias.nbytes)
        return Packed(in_features=data.shape[1], out_features=data.shape[0], num_bytes=num_bytes, data=data, bias=bias)

    def unpack(self, packed: Packed) -> Tensor:
        return packed.data

    def pack_gate_up(self, gate_IF: Matrix, up_IF: Matrix) -> Packed:
        return self.pack((gate_IF, up_IF))

    def pack_experts(
        self, router_NF: Matrix, mlps: Iterable[Mlp], routing: Routing, shared: Mlp | None = None
    ) -> PackedExperts:
        return stacked(self.pack, router_NF, mlps, routing, shared)

    def embed(self, table_VF: Tensor | Packed, tokens_R: Tensor) -> Tensor:
        rows_VF = table_VF.data if isinstance(table_VF, Packed) else table_VF
        return rows_VF[tokens_R].to(self.activation_dtype)

    def norm_project(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed) -> Tensor:
        x_RF = x_RF if norm_F is None else rms_norm(x_RF, norm_F, eps)
        return linear(x_RF, packed.data, packed.bias)

    def project_add(self, x_RF: Tensor, packed: Packed, residual_RO: Tensor) -> None:
        residual_RO += linear(x_RF, packed.data, packed.bias)

    def project_norm_add(self, x_RF: Tensor, packed: Packed, norm_O: Tensor, eps: float, residual_RO: Tensor) -> None:
        residual_RO += rms_norm(linear(x_RF, packed.data, packed.bias), norm_O, eps)

    def scale(self, x_RF: Tensor, factor: float) -> None:
        x_RF *= factor

    def grow(self, x_RF: Tensor, num_columns: int, factors_P: Tensor, placement: Placement) -> None:
        x_RF[:, :num_columns] *= factors_P[placement.positions_BM].view(-1, 1)

    def gate_up(
        self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed, activation: Activation = "silu"
    ) -> Tensor:
        gate_RI, up_RI = self.norm_project(x_RF, norm_F, eps, packed).chunk(2, dim=-1)
        return (silu(gate_RI) if activation == "silu" else gelu(gate_RI, approximate="tanh")) * up_RI

    def add_experts(self, x_RF: Tensor, norm_F: Tensor, eps: float, experts: PackedExperts) -> None:
        x_RF += mixed(rms_norm(x_RF, norm_F, eps), experts)

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
        H, G, D = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.store(qkv_RQ, shape, rope, keys_CHSD, values_CHSD, placement, head_norm)
        q_BMHD = qkv_RQ.view(B, M, H + 2 * G, D)[:, :, :H]
        if head_norm is not None:
            q_BMHD = rms_norm(q_BMHD, head_norm.query_D, head_norm.eps)
        q_BMHD = rotate(q_BMHD, rope, placement.positions_BM)
        if self._fused:
            return attend_fused(q_BMHD, shape, keys_CHSD, values_CHSD, placement)
        keys_BGSD = restored(keys_CHSD[placement.slots_B, :, : placement.limit], self._dtype)
        values_BGSD = restored(values_CHSD[placement.slots_B, :, : placement.limit], self._dtype)
        q_BGNMD = q_BMHD.view(B, M, G, H // G, D).permute(0, 2, 3, 1, 4)
        scores = (q_BGNMD @ keys_BGSD[:, :, None].transpose(-1, -2)) * shape.scale
        hidden = ~visible_BMS(placement, shape.sliding_window, keys_BGSD.shape[2], shape.chunk)[:, None, None]
        weights = scores.to(_wide(self._dtype)).masked_fill(hidden, -torch.inf).softmax(-1)
        weights = weights.masked_fill(hidden, 0.0).to(self._dtype)
        out_BGNMD = weights @ values_BGSD[:, :, None]
        return out_BGNMD.permute(0, 3, 1, 2, 4).reshape(B * M, H * D)

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
        H, G, D = shape.num_heads, shape.num_kv_heads, shape.head_dim
        kv_BMHD = qkv_RQ.view(*placement.positions_BM.shape, H + 2 * G, D)[:, :, H:]
        k_BMGD, v_BMGD = kv_BMHD[:, :, :G], kv_BMHD[:, :, G:]
        if head_norm is not None:
            k_BMGD = rms_norm(k_BMGD, head_norm.key_D, head_norm.eps)
        k_BMGD = rotate(k_BMGD, rope, placement.positions_BM)
        rows_B1 = placement.slots_B[:, None]
        keys_CHSD[rows_B1, :, placement.write_BM] = stored(k_BMGD, keys_CHSD.dtype)
        values_CHSD[rows_B1, :, placement.write_BM] = stored(v_BMGD, values_CHSD.dtype)

    def collect(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, out_RT: Tensor, column: int) -> None:
        out_RT[:, column : column + x_RF.shape[1]] = x_RF if norm_F is None else rms_norm(x_RF, norm_F, eps)


def stored(heads_BMGD: Tensor, dtype: torch.dtype) -> Tensor:
    """Return heads as a cache of that dtype stores them: in int8 codes, and the bytes of their scale behind them."""
    if dtype != torch.int8:
        return heads_BMGD.to(dtype)
    wide_BMGD = heads_BMGD.to(_wide(heads_BMGD.dtype))
    scales_BMG1 = (wide_BMGD.abs().amax(-1, keepdim=True) / 127).to(torch.float32).clamp(min=2.0**-126)
    codes_BMGD = (wide_BMGD / scales_BMG1).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([codes_BMGD, scales_BMG1.view(torch.int8)], dim=-1)


def restored(cached_BGSD: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers of cached heads in a dtype."""
    if cached_BGSD.dtype != torch.int8:
        return cached_BGSD.to(dtype)
    codes_BGSD, bytes_BGSX = cached_BGSD[..., :-SCALE_BYTES], cached_BGSD[..., -SCALE_BYTES:]
    scales_BGS1 = bytes_BGSX.clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (codes_BGSD.to(_wide(dtype)) * scales_BGS1).to(dtype)


def attend_fused(
    q_BMHD: Tensor, shape: AttentionShape, keys_CHSD: Tensor, values_CHSD: Tensor, placement: Placement
) -> Tensor:
    """Attend with rotated queries over the cache, by PyTorch's fused kernel; return a new tensor [R, H * D]."""
    B, M, H, D = q_BMHD.shape
    G = shape.num_kv_heads
    keys_BGSD, values_BGSD = (
        restored(_cached(cached_CHSD, placement), q_BMHD.dtype) for cached_CHSD in (keys_CHSD, values_CHSD)
    )
    seen_BMS = visible_BMS(placement, shape.sliding_window, keys_BGSD.shape[2], shape.chunk)
    q_BGYD = q_BMHD.view(B, M, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(B, G, -1, D)
    seen_B1YS = seen_BMS[:, None].expand(-1, H // G, -1, -1).reshape(B, 1, q_BGYD.shape[2], -1)
    out_BGYD = scaled_dot_product_attention(q_BGYD, keys_BGSD, values_BGSD, attn_mask=seen_B1YS, scale=shape.scale)
    out_BGYD = out_BGYD.masked_fill(~seen_B1YS.any(-1, keepdim=True), 0.0)  # kernels differ on rows that see nothing
    return out_BGYD.view(B, G, H // G, M, D).permute(0, 3, 1, 2, 4).reshape(B * M, H * D)


def _cached(cached_CHSD: Tensor, placement: Placement) -> Tensor:
    """Return the slots' positions up to the limit; without a copy where the cache has one slot."""
    near_CHSD = cached_CHSD[:, :, : placement.limit]
    if len(near_CHSD) == 1:
        return near_CHSD.expand(len(placement.slots_B), -1, -1, -1)
    return near_CHSD[placement.slots_B]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension, in fp32 or wider."""
    wide = x.to(_wide(x.dtype))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rotate(x_BMHD: Tensor, rope: Rope, positions_BM: Tensor) -> Tensor:
    """Apply rotary positions; the two halves of a head are the coordinates."""
    cos = rope.cos_PD[positions_BM][:, :, None]
    sin = rope.sin_PD[positions_BM][:, :, None]
    left, right = x_BMHD.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x_BMHD.dtype)


def visible_BMS(placement: Placement, window: int | None, num_positions: int, chunk: int | None = None) -> Tensor:
    """Return a bool [B, M, S]: which of the slot's first `num_positions` cached positions each row sees."""
    positions_BM1 = placement.positions_BM[:, :, None]
    M = positions_BM1.shape[1]
    device = positions_BM1.device
    s_S = torch.arange(num_positions, device=device)
    m_M1 = torch.arange(M, device=device)[:, None]
    tail_B1S = (s_S - placement.lengths_B[:, None])[:, None]
    prefix_BMS = (tail_B1S < 0).expand(-1, M, -1)
    if window is not None:
        prefix_BMS = prefix_BMS & (positions_BM1 - s_S < window)
    if chunk is not None:
        prefix_BMS = prefix_BMS & (positions_BM1 // chunk == s_S // chunk)
    if placement.mask_BMT is None:
        seen_BMS = (tail_B1S >= 0) & (tail_B1S <= m_M1)
        if window is not None:
            seen_BMS = seen_BMS & (m_M1 - tail_B1S < window)
        if chunk is not None:
            seen_BMS = seen_BMS & (positions_BM1 // chunk == s_S // chunk)
        return prefix_BMS | seen_BMS
    T = placement.mask_BMT.shape[2]
    seen_BMS = placement.mask_BMT.gather(2, tail_B1S.clamp(0, T - 1).expand(-1, M, -1))
    return prefix_BMS | (seen_BMS & (tail_B1S >= 0) & (tail_B1S < T))
