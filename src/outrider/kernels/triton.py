"""The operations of a decoder between its matrix products, as five Triton kernels.

In plain PyTorch these are some forty kernels per layer, which together take longer than reading its weights. Here:

    norm      RMSNorm of one row                                       one program per row
    gated     silu(gate) * up                                          one program per row and block of columns
    place     split, normalise and rotate the heads, write the cache   one program per row and head
    partial   attention of a group of query heads over a part of the cache
    merge     the parts, joined by their log-sum-exp

`partial` is split-K decoding attention (Dao et al. 2023, "Flash-Decoding"). The query heads that share a key head and
the M rows of a slot form one tile, so keys and values are read once, in place. With m, l and o of each part (largest
score, sum of exponentials, weighted values)

    out = sum_p exp(m_p - m) o_p / sum_p exp(m_p - m) l_p,   m = max_p m_p

Arithmetic is fp32 (fp64 for fp64). Tests run the kernels on the CPU under TRITON_INTERPRET=1.

Legend in `ops/base.py`; P parts of the cache, Y rows of a tile.
"""

import triton
import triton.language as tl

__all__ = ["gated", "merge", "norm", "partial", "place"]


@triton.jit  # type: ignore[untyped-decorator]
def norm(x_RF, weight_F, out_RF, F, out_stride, eps, WIDE: tl.constexpr, N: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, N)
    real = columns < F
    x = tl.load(x_RF + row * F + columns, mask=real, other=0.0).to(WIDE)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / F + eps)
    y = x * scale * tl.load(weight_F + columns, mask=real, other=0.0).to(WIDE)
    tl.store(out_RF + row * out_stride + columns, y.to(out_RF.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def gated(both_RI, out_RI, I, WIDE: tl.constexpr, N: tl.constexpr) -> None:  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    real = columns < I
    gate = tl.load(both_RI + row * 2 * I + columns, mask=real, other=0.0).to(WIDE)
    up = tl.load(both_RI + row * 2 * I + I + columns, mask=real, other=0.0).to(WIDE)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_RI + row * I + columns, y.to(out_RI.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def place(
    qkv_RQ,
    q_RHD,
    keys_CHSD,
    values_CHSD,
    cos_PD,
    sin_PD,
    query_D,
    key_D,
    slots_B,
    positions_BM,
    write_BM,
    M,
    S,
    eps,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    NORM: tl.constexpr,
    WIDE: tl.constexpr,
    N: tl.constexpr,
) -> None:
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = D // 2
    i = tl.arange(0, N)
    real = i < half
    source = qkv_RQ + (row * (H + 2 * G) + head) * D
    left = tl.load(source + i, mask=real, other=0.0).to(WIDE)
    right = tl.load(source + half + i, mask=real, other=0.0).to(WIDE)
    if head < H + G:
        if NORM:
            weight_D = query_D if head < H else key_D
            scale = 1.0 / tl.sqrt((tl.sum(left * left, 0) + tl.sum(right * right, 0)) / D + eps)
            left = (left * scale * tl.load(weight_D + i, mask=real, other=0.0)).to(qkv_RQ.dtype.element_ty).to(WIDE)
            right = (
                (right * scale * tl.load(weight_D + half + i, mask=real, other=0.0))
                .to(qkv_RQ.dtype.element_ty)
                .to(WIDE)
            )
        at = tl.load(positions_BM + row) * half
        cos = tl.load(cos_PD + at + i, mask=real, other=0.0).to(WIDE)
        sin = tl.load(sin_PD + at + i, mask=real, other=0.0).to(WIDE)
        rotated = left * cos - right * sin
        right = right * cos + left * sin
        left = rotated
    if head < H:
        goal = q_RHD + (row * H + head) * D
        tl.store(goal + i, left.to(q_RHD.dtype.element_ty), mask=real)
        tl.store(goal + half + i, right.to(q_RHD.dtype.element_ty), mask=real)
    else:
        position = (tl.load(write_BM + row) + S) % S  # -1 is the last
        slot = tl.load(slots_B + row // M)
        if head < H + G:
            goal = keys_CHSD + ((slot * G + head - H) * S + position) * D
            tl.store(goal + i, left.to(keys_CHSD.dtype.element_ty), mask=real)
            tl.store(goal + half + i, right.to(keys_CHSD.dtype.element_ty), mask=real)
        else:
            goal = values_CHSD + ((slot * G + head - H - G) * S + position) * D
            tl.store(goal + i, left.to(values_CHSD.dtype.element_ty), mask=real)
            tl.store(goal + half + i, right.to(values_CHSD.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def sees(
    s,
    length,
    m,
    row,
    real,
    place_y,
    mask_BMT,
    T,
    window,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Return which of the positions s the rows of a tile see."""
    t = s - length
    if MASKED:
        inner = (t >= 0) & (t < T)
        seen = tl.load(mask_BMT + row[:, None] * T + t[None], mask=real[:, None] & inner[None], other=0) != 0
    else:
        seen = (t[None] >= 0) & (t[None] <= m[:, None]) & real[:, None]
        if WINDOWED:
            seen = seen & (m[:, None] - t[None] < window)
    prefix = (t < 0)[None] & real[:, None]
    if WINDOWED:
        prefix = prefix & (place_y[:, None] - s[None] < window)
    return prefix | seen


@triton.jit  # type: ignore[untyped-decorator]
def partial(
    q_RHD,
    keys_CHSD,
    values_CHSD,
    slots_B,
    lengths_B,
    positions_BM,
    mask_BMT,
    out_BGPYD,
    top_BGPY,
    sum_BGPY,
    M,
    T,
    S,
    P,
    scale,
    window,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    WIDE: tl.constexpr,
    Y: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    b, g, part, tile = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = H // G
    y = tile * Y + tl.arange(0, Y)  # row y of the tiles is query head y % group of the group, at row y // group
    m, head = y // group, g * group + y % group
    real = m < M
    d, row = tl.arange(0, WIDTH), b.to(tl.int64) * M + m
    q = tl.load(q_RHD + (row * H + head)[:, None] * D + d[None], mask=real[:, None] & (d < D)[None], other=0.0)
    slot, length = tl.load(slots_B + b), tl.load(lengths_B + b).to(tl.int32)
    place_y = tl.load(positions_BM + row, mask=real, other=0).to(tl.int32)
    base = (slot * G + g) * S * D
    total = length + T
    chunk = tl.cdiv(tl.cdiv(total, P), BLOCK) * BLOCK
    top = tl.full([Y], float("-inf"), WIDE)
    sums, out = tl.zeros([Y], WIDE), tl.zeros([Y, WIDTH], WIDE)
    for start in range(part * chunk, tl.minimum(part * chunk + chunk, total), BLOCK):
        s = start + tl.arange(0, BLOCK)
        inside = (s < total)[:, None] & (d < D)[None]
        k = tl.load(keys_CHSD + base + s[:, None] * D + d[None], mask=inside, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=WIDE) * scale
        seen = sees(s, length, m, row, real, place_y, mask_BMT, T, window, MASKED, WINDOWED)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - safe[:, None])
        fade = tl.exp(top - safe)
        v = tl.load(values_CHSD + base + s[:, None] * D + d[None], mask=inside, other=0.0).to(q.dtype)
        sums = sums * fade + tl.sum(weights, 1)
        out = out * fade[:, None] + tl.dot(weights.to(q.dtype), v, input_precision="ieee", out_dtype=WIDE)
        top = higher
    at = (tl.program_id(0) * P + part).to(tl.int64) * (tl.num_programs(2) * Y) + y
    tl.store(top_BGPY + at, top)
    tl.store(sum_BGPY + at, sums)
    tl.store(out_BGPYD + at[:, None] * D + d[None], out, mask=(d < D)[None])


@triton.jit  # type: ignore[untyped-decorator]
def merge(
    out_BGPYD,
    top_BGPY,
    sum_BGPY,
    out_RHD,
    M,
    P,
    rows,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group: tl.constexpr = H // G
    b, y = row // M, (row % M) * group + head % group
    p, d = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    at = ((b * G + head // group) * P + p) * rows + y
    top = tl.load(top_BGPY + at, mask=p < P, other=float("-inf"))
    highest = tl.max(top, 0)
    weights = tl.exp(top - tl.where(highest == float("-inf"), 0.0, highest))
    sums = tl.sum(weights * tl.load(sum_BGPY + at, mask=p < P, other=0.0), 0)
    parts = tl.load(out_BGPYD + at[:, None] * D + d[None], mask=(p < P)[:, None] & (d < D)[None], other=0.0)
    y_D = tl.sum(parts * weights[:, None], 0) / tl.where(sums > 0.0, sums, 1.0)
    tl.store(out_RHD + (row * H + head) * D + d, y_D.to(out_RHD.dtype.element_ty), mask=d < D)
