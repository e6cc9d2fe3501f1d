"""Attention calls drawn by hypothesis: trees with gaps, earlier tails and padding rows, or causal chunks."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from outrider.ops.base import AttentionShape, HeadNorm, Ops, Rope
from outrider.placement import Placement

__all__ = ["TRASH", "Call", "calls"]

CAPACITY, SLOTS = 200, 3
TRASH = CAPACITY - 1


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of `Ops.attend`, and the cache before it; all of it in fp64 on the CPU until `to`."""

    qkv_RQ: Tensor
    shape: AttentionShape
    rope: Rope
    keys_CHSD: Tensor
    values_CHSD: Tensor
    placement: Placement
    head_norm: HeadNorm | None

    def to(self, dtype: torch.dtype, device: str) -> "Call":
        """A copy; tables stay wide, as a decoder holds them."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        place, norm, rope = self.placement, self.head_norm, self.rope
        indices = {
            name: getattr(place, name).to(device, copy=True)
            for name in ("slots_B", "lengths_B", "positions_BM", "write_BM")
        }
        mask = None if place.mask_BMT is None else place.mask_BMT.to(device, copy=True)
        return replace(
            self,
            qkv_RQ=self.qkv_RQ.to(device, dtype, copy=True),
            rope=Rope(cos_PD=rope.cos_PD.to(device, wide), sin_PD=rope.sin_PD.to(device, wide)),
            keys_CHSD=self.keys_CHSD.to(device, dtype, copy=True),
            values_CHSD=self.values_CHSD.to(device, dtype, copy=True),
            placement=Placement(**indices, mask_BMT=mask, limit=place.limit),
            head_norm=norm
            and HeadNorm(query_D=norm.query_D.to(device, dtype), key_D=norm.key_D.to(device, dtype), eps=norm.eps),
        )

    def run(self, ops: Ops) -> Tensor:
        return ops.attend(
            self.qkv_RQ, self.shape, self.rope, self.keys_CHSD, self.values_CHSD, self.placement, self.head_norm
        )


@st.composite
def calls(draw: st.DrawFn, most_rows: int = 9) -> Call:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    G, D = draw(st.integers(1, 3)), draw(st.sampled_from([2, 6, 8, 16, 20, 64]))
    H = G * draw(st.integers(1, 7))
    B, M, earlier = draw(st.integers(1, SLOTS)), draw(st.integers(1, most_rows)), draw(st.integers(0, 4))
    causal = draw(st.booleans())
    lengths_B = torch.randint(0, draw(st.sampled_from([1, 30, 150])), (B,), generator=generator)
    T = M if causal else M + earlier
    tail_M = torch.arange(T - M, T)
    write_BM = lengths_B[:, None] + tail_M
    positions_BM = write_BM.clone()
    mask_BMT = None
    if not causal:
        mask_BMT = torch.rand(B, M, T, generator=generator) < 0.5
        mask_BMT &= torch.arange(T) <= tail_M[:, None]
        padding_BM = torch.rand(B, M, generator=generator) < 0.2
        mask_BMT &= ~padding_BM[:, :, None] & ~torch.nn.functional.pad(padding_BM, (T - M, 0))[:, None]
        write_BM = write_BM.masked_fill(padding_BM, TRASH)
    angles = torch.outer(torch.arange(CAPACITY), 10000.0 ** -(torch.arange(0, D, 2) / D)).double()
    norm = HeadNorm(query_D=randn(D), key_D=randn(D), eps=1e-5) if draw(st.booleans()) else None
    window = draw(st.none() | st.integers(1, 12))
    return Call(
        qkv_RQ=randn(B * M, (H + 2 * G) * D),
        shape=AttentionShape(num_heads=H, num_kv_heads=G, head_dim=D, scale=D**-0.5, sliding_window=window),
        rope=Rope(cos_PD=angles.cos(), sin_PD=angles.sin()),
        keys_CHSD=randn(SLOTS, G, CAPACITY, D),
        values_CHSD=randn(SLOTS, G, CAPACITY, D),
        placement=Placement(
            slots_B=torch.randperm(SLOTS, generator=generator)[:B],
            lengths_B=lengths_B,
            positions_BM=positions_BM,
            write_BM=write_BM,
            mask_BMT=mask_BMT,
            limit=min(CAPACITY, int(lengths_B.max()) + T + draw(st.sampled_from([0, 5, CAPACITY]))),
        ),
        head_norm=norm,
    )
