"""The attention of the CPU back end: rotate, write the cache, read the cache, in one parallel region of two stages.

For each row the positions it sees are first gathered into a list, the committed ones in ascending order, then the tail
in ascending order. Everything after that is defined on the list: scores are independent of each other, the sum of
exponentials runs down the list in fixed lanes, and the values are accumulated down the list by one fused multiply-add
per element. So the bits of a row depend on what it sees and not on where it is stored: a tree node whose siblings lie
between its ancestors gives what the same tokens give when committed, one row at a time or many.

Worked example: a row sees positions 0, 1, 3 of the cache. The list is [0, 1, 3], padded to whole vectors; scores beyond
the third are minus infinity, their exponentials exactly 0.

Query heads that share a key head are processed together, up to four, so that a key is loaded and widened once.
"""

from numba import types

from outrider.models.cpu_rows import dot
from outrider.models.cpu_softmax import MAX_HEADS, score_and_mix, store_half
from outrider.models.cpu_threads import finished, stack, ticket, wait_for
from outrider.models.cpu_vector import WIDTH, f32, f64, i32, i64, inlined, kernel, u8

__all__ = ["MAX_HEAD_DIM", "attention"]

MAX_HEAD_DIM = 1024
HEAD_BYTES = 4 * MAX_HEAD_DIM


@inlined
def prepare_head(source: int, norm: int, eps: float, cos: int, sin: int, D: int, scale: float, out: int) -> None:
    """out = rotate(norm(source)) * scale for one head; `norm` 0 leaves the norm out."""
    x, y, c, s = f32(source), f32(out), f32(cos), f32(sin)
    half = D // 2
    if norm != 0:
        weight = f32(norm)
        factor = types.float32(1.0 / (dot(source, source, D) / D + eps) ** 0.5)
        for d in range(D):
            y[d] = x[d] * factor * weight[d]
    else:
        for d in range(D):
            y[d] = x[d]
    multiplier = types.float32(scale)
    for d in range(half):
        left, right = y[d], y[d + half]
        y[d] = (left * c[d] - right * s[d]) * multiplier
        y[d + half] = (right * c[d] + left * s[d]) * multiplier


@inlined
def write_head(source: int, target: int, half: int, D: int) -> None:
    """Copy one head into the cache, in the cache's dtype."""
    x = f32(source)
    if half == 1:
        for d in range(D):
            store_half(target + d * 2, x[d])
    else:
        y = f32(target)
        for d in range(D):
            y[d] = x[d]


@inlined
def place_row(block: int, r: int) -> None:
    """Rotate row r's queries into the output and write its keys and values into the cache."""
    a = i64(block)
    H, G, D, S, M = a[18], a[19], a[20], a[21], a[16]
    half = a[22]
    size = 2 if half == 1 else 4
    position, slot, write = i64(a[12])[r], i64(a[10])[r // M], i64(a[13])[r]
    cos, sin = a[2] + position * D * 2, a[3] + position * D * 2
    eps, scale = f64(block)[6], f64(block)[7]
    row = a[0] + r * (H + 2 * G) * D * 4
    for h in range(H):
        prepare_head(row + h * D * 4, a[4], eps, cos, sin, D, scale, a[1] + (r * H + h) * D * 4)
    head = stack(HEAD_BYTES)
    for g in range(G):
        place = ((slot * G + g) * S + write) * D * size
        prepare_head(row + (H + g) * D * 4, a[5], eps, cos, sin, D, 1.0, head)
        write_head(head, a[8] + place, half, D)
        write_head(row + (H + G + g) * D * 4, a[9] + place, half, D)


@inlined
def list_visible(block: int, b: int, m: int, listed: int) -> int:
    """Write the positions that row (b, m) sees, padded to whole vectors with the last; return their number."""
    a = i64(block)
    M, T, window, length = a[16], a[17], a[23], i64(a[11])[b]
    positions = i32(listed)
    first = max(0, i64(a[12])[b * M + m] - window + 1) if window > 0 else 0
    count = 0
    for position in range(first, length):
        positions[count] = types.int32(position)
        count += 1
    if a[14] == 0:
        for t in range(max(0, m - window + 1) if window > 0 else 0, m + 1):
            positions[count] = types.int32(length + t)
            count += 1
    else:
        mask = u8(a[14] + (b * M + m) * T)
        for t in range(T):
            if mask[t] != 0:
                positions[count] = types.int32(length + t)
                count += 1
    if count > 0:
        for extra in range(count, (count + WIDTH - 1) // WIDTH * WIDTH):
            positions[extra] = positions[count - 1]
    return count


@inlined
def attend_row(block: int, b: int, m: int, g: int, h: int, heads: int, listed: int, scores: int, row: int) -> None:
    """Query heads h .. h + heads - 1, all of key head g, of row (b, m)."""
    a = i64(block)
    H, G, D, S, M = a[18], a[19], a[20], a[21], a[16]
    half = a[22]
    count = list_visible(block, b, m, listed)
    q = a[1] + ((b * M + m) * H + h) * D * 4
    if count == 0:
        result = f32(q)
        for d in range(heads * D):
            result[d] = types.float32(0.0)
        return
    base = (i64(a[10])[b] * G + g) * S * D * (2 if half == 1 else 4)
    score_and_mix(heads, half, q, a[8] + base, a[9] + base, listed, count, D, scores, row)


@kernel
def attention(block: int) -> None:
    """Arguments as in `ops_cpu.CpuOps.attend`."""
    a = i64(block)
    R, M, H, G = a[15] * a[16], a[16], a[18], a[19]
    r = ticket(block, 0)
    while r < R:
        place_row(block, r)
        finished(block, 1)
        r = ticket(block, 0)
    wait_for(block, 1, R)
    row, heads = a[25], a[26]
    group = H // G
    parts = (group + heads - 1) // heads
    task = ticket(block, 2)
    if task >= R * G * parts:
        return
    listed = a[24] + ticket(block, 3) * row * 4 * (1 + MAX_HEADS)  # each thread that has a task has its own scratch
    scores = listed + row * 4
    while task < R * G * parts:
        part, pair = task % parts, task // parts
        g, r = pair % G, pair // G
        first = part * heads
        attend_row(block, r // M, r % M, g, g * group + first, min(heads, group - first), listed, scores, row)
        task = ticket(block, 2)
