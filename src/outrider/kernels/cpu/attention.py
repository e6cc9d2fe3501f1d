"""The attention of the CPU back end: rotate, write the cache, read the cache, in one parallel region of two stages.

A task is a few rows of a slot and up to four query heads that share a key head. It reads the positions that any of its
rows sees in chunks, so that a chunk's keys, and later its values, stay in the first-level cache. Hidden positions are
removed from a row's scores before the sum of their exponentials, which runs over the seen positions in fixed lanes, and
have weight 0 afterwards. So the bits of a row depend on what it sees and not on where it is stored: a tree node whose
siblings are stored between its ancestors gives the same result as the same tokens when committed, one row at a time or
many.

Worked example: a row sees positions 0, 1, 3 of the cache. Its scores become (s0, s1, s3), padded to whole vectors with
minus infinity; their exponentials and sum give the weights (w0, w1, 0, w3).
"""

from typing import Any

from numba import types

from outrider.kernels.cpu.cached.kinds import BF16, CODES, PLAIN, SCALE_BYTES
from outrider.kernels.cpu.cached.store import store_column, store_head
from outrider.kernels.cpu.rows import dot
from outrider.kernels.cpu.softmax import CHUNK, MAX_HEADS, PAIR, exponentials, mix, score, settle
from outrider.kernels.cpu.threads import draw, finished, stack, wait_for
from outrider.kernels.cpu.vector import (
    F32,
    I64,
    SUMS,
    WIDTH,
    Emitter,
    Value,
    emitted,
    f32,
    f64,
    i64,
    inlined,
    kernel,
    lowered,
    splat,
    u8,
    vector,
)

__all__ = ["MAX_HEAD_DIM", "MAX_ROWS", "POSITIONS", "attention", "scores_in", "scratch_size"]

MAX_HEAD_DIM = 1024
HEAD_BYTES = 4 * MAX_HEAD_DIM
MAX_ROWS = 4  # rows of one task
SPAN_BYTES = 8 * MAX_ROWS
SHARE_BYTES = 4 * MAX_ROWS * MAX_HEADS
POSITIONS = 2 * WIDTH  # a cache holds a multiple of it, so that vectors of keys end where a row of them ends


def scores_in(positions: int) -> int:
    """Return the length of a line of scores: whole chunks, and one more for padding."""
    return (positions // CHUNK + 2) * CHUNK


def scratch_size(threads: int, rows: int, heads: int, row: int) -> int:
    """Return the size of the scratch: a line of scores for each thread, row and head of a task."""
    return threads * rows * heads * row


@inlined
def prepare_head(source: int, norm: int, eps: float, cos: int, sin: int, D: int, scale: float, out: int) -> None:
    """Compute out = rotate(norm(source)) * scale for one head; `norm` 0 skips the norm."""
    if norm != 0:
        factor = types.float32(1.0 / (dot(source, source, D) / D + eps) ** 0.5)
        x, y, weight = f32(source), f32(out), f32(norm)
        for d in range(D):
            y[d] = x[d] * factor * weight[d]
        source = out
    rotate(source, cos, sin, D, types.float32(scale), out)


@emitted
def rotate(typing: Any, source: Any, cos: Any, sin: Any, D: Any, scale: Any, out: Any) -> Any:
    """Compute (left * cos - right * sin, right * cos + left * sin) * scale from (left, right).

    `out` may be `source`.
    """

    def emit(emitter: Emitter, source: Value, cos: Value, sin: Value, D: Value, scale: Value, out: Value) -> None:
        b = emitter.builder
        half = b.lshr(D, I64(1))
        whole = emitter.whole(half, WIDTH)
        for start, stop, lanes in ((I64(0), whole, WIDTH), (whole, half, 1)):
            factor = splat(emitter, scale, lanes)
            with emitter.loop(start, stop, lanes) as i:
                places = [emitter.at(source, i, 4), emitter.at(emitter.at(source, half, 4), i, 4)]
                places += [emitter.at(cos, i, 4), emitter.at(sin, i, 4)]
                left, right, c, s = (emitter.load(place, vector(F32, lanes)) for place in places)
                low = b.fmul(b.fsub(b.fmul(left, c), b.fmul(right, s)), factor)
                high = b.fmul(b.fadd(b.fmul(right, c), b.fmul(left, s)), factor)
                emitter.store(emitter.at(out, i, 4), low)
                emitter.store(emitter.at(emitter.at(out, half, 4), i, 4), high)

    return lowered(emit, types.void, source, cos, sin, D, scale, out)


@inlined
def bytes_of(kind: int) -> int:
    """Return the bytes of a cached number, as `SIZES` has them."""
    return 4 if kind == PLAIN else 2 if kind == BF16 else 1


@inlined
def head_bytes(kind: int, D: int) -> int:
    """Return the bytes of a cached head."""
    return D + SCALE_BYTES if kind == CODES else D * bytes_of(kind)


@inlined
def place_head(block: int, r: int, g: int) -> None:
    """Write row r's key head g, rotated, and its values into the cache."""
    a = i64(block)
    H, G, D, S, kind = a[18], a[19], a[20], a[21], a[22]
    position, slot, write = i64(a[12])[r], i64(a[10])[r // a[16]], i64(a[13])[r]
    cos, sin, eps = a[2] + position * D * 2, a[3] + position * D * 2, f64(block)[6]
    row, head = a[0] + r * (H + 2 * G) * D * 4, stack(HEAD_BYTES)
    first, stored = (slot * G + g) * S * head_bytes(kind, D), head_bytes(kind, D)
    prepare_head(row + (H + g) * D * 4, a[5], eps, cos, sin, D, 1.0, head)
    store_column(head, a[8] + first + write * bytes_of(kind), kind, D, S)
    store_head(row + (H + G + g) * D * 4, a[9] + first + write * stored, kind, D)


@inlined
def place_queries(block: int, r: int, h: int, heads: int) -> None:
    """Rotate and scale query heads h .. h + heads - 1 of row r into the output."""
    a = i64(block)
    H, G, D, position, eps, scale = a[18], a[19], a[20], i64(a[12])[r], f64(block)[6], f64(block)[7]
    cos, sin = a[2] + position * D * 2, a[3] + position * D * 2
    for k in range(h, h + heads):
        source, target = a[0] + (r * (H + 2 * G) + k) * D * 4, a[1] + (r * H + k) * D * 4
        prepare_head(source, a[4], eps, cos, sin, D, scale, target)


@inlined
def first_seen(block: int, length: int, r: int) -> int:
    """Return the first position that row r sees, or its slot's length if that is smaller."""
    a = i64(block)
    window, position = a[23], i64(a[12])[r]
    first = max(0, position - window + 1) if window > 0 else 0
    if window < 0:  # chunks of that size
        first = position // -window * -window
    return min(first, length) if a[14] != 0 else first


@inlined
def end_seen(block: int, length: int, r: int, m: int) -> int:
    """Return one past the last position that row r, the m-th of its slot, sees.

    Positions behind it may never have been written.
    """
    a = i64(block)
    count: int = a[17]
    if a[14] == 0:
        return length + m + 1
    mask = u8(a[14] + r * count)
    while count > 0 and mask[count - 1] == 0:
        count -= 1
    return length + count


@inlined
def seen_together(scores: int, length: int, mask: int, T: int) -> int:
    """Move the visible scores of the tail up behind the first `length`, and return the number of scores."""
    line, count = f32(scores), length
    for t in range(T):
        if u8(mask)[t] != 0:
            line[count] = line[length + t]
            count += 1
    return count


@inlined
def seen_apart(scores: int, length: int, mask: int, T: int, count: int) -> None:
    """Undo `seen_together`, with 0 for what the mask hides."""
    line = f32(scores)
    for t in range(T - 1, -1, -1):
        if u8(mask)[t] != 0:
            count -= 1
            line[length + t] = line[count]
        else:
            line[length + t] = types.float32(0.0)


@inlined
def weigh(line: int, last: int, start: int, length: int, end: int, mask: int) -> float:
    """Turn a line of scores of `last` positions into weights: exponentials of what the row sees, else 0.

    The row sees positions `start` to `end`, but from `length` on only what the mask shows, if there is one. Returns 1 /
    the sum of the weights, or 0 where nothing is seen.
    """
    scores, weights, known = line + start * 4, f32(line), length - start
    count = end - start if mask == 0 else seen_together(scores, known, mask, end - length)
    total: float = types.float32(0.0)
    if count > 0:
        padded = (count + SUMS - 1) // SUMS * SUMS
        for j in range(count, padded):
            f32(scores)[j] = -float("inf")
        total = types.float32(1.0) / exponentials(scores, padded)
    if mask != 0:
        seen_apart(scores, known, mask, end - length, count)
    for j in range(start):
        weights[j] = types.float32(0.0)
    for j in range(end, last):
        weights[j] = types.float32(0.0)
    return total


@inlined
def attend_rows(block: int, b: int, m: int, rows: int, g: int, h: int, heads: int, scratch: int) -> None:
    """Attend with query heads h .. h + heads - 1, all of key head g, for `rows` rows of one slot from (b, m) on.

    The scratch holds a line of scores for each row and head, from position `base` on.
    """
    a = i64(block)
    H, D, S, T, kind, row, r, length = a[18], a[20], a[21], a[17], a[22], a[25], b * a[16] + m, i64(a[11])[b]
    starts, ends = i64(stack(SPAN_BYTES)), i64(stack(SPAN_BYTES))
    base, end = length, 0
    for i in range(rows):
        starts[i], ends[i] = first_seen(block, length, r + i), end_seen(block, length, r + i, m + i)
        base, end = min(base, starts[i]), max(end, ends[i])
        place_queries(block, r + i, h, heads)
    queries, stride, line = a[1] + (r * H + h) * D * 4, H * D * 4, row * 4
    size, stored = bytes_of(kind), head_bytes(kind, D)
    place = (i64(a[10])[b] * a[19] + g) * S * stored
    keys, values = a[8] + place, a[9] + place
    base = base // POSITIONS * POSITIONS
    for first in range(base, end, CHUNK):
        for i in range(0, rows, PAIR):
            score(
                min(PAIR, rows - i),
                heads,
                kind,
                queries + i * stride,
                stride,
                keys + first * size,
                S,
                end - first,
                values + first * stored,
                D,
                scratch + i * heads * line + (first - base) * 4,
                row,
            )
    shares = f32(stack(SHARE_BYTES))
    for i in range(rows):
        result, mask = f32(queries + i * stride), 0 if a[14] == 0 else a[14] + (r + i) * T
        for d in range(heads * D):
            result[d] = types.float32(0.0)
        for k in range(i * heads, i * heads + heads):
            last, start, known = end - base, starts[i] - base, length - base
            shares[k] = weigh(scratch + k * line, last, start, known, ends[i] - base, mask)
    for first in range(base, end, CHUNK):
        for i in range(0, rows, PAIR):
            mix(
                min(PAIR, rows - i),
                heads,
                kind,
                scratch + i * heads * line + (first - base) * 4,
                row,
                values + first * stored,
                min(CHUNK, end - first),
                D,
                queries + i * stride,
                stride,
            )
    for i in range(rows):
        for k in range(heads):
            settle(kind, queries + i * stride + k * D * 4, shares[i * heads + k], D)


@inlined
def num_alike(block: int, b: int, m: int, most: int) -> int:
    """Count the rows from (b, m) on that belong to its slot, at most `most`."""
    slots, M, rows = i64(i64(block)[10]), i64(block)[16], 1
    while rows < most and (m + rows < M if M > 1 else slots[b + rows] == slots[b]):
        rows += 1
    return rows


@kernel
def attention(block: int, lane: int) -> None:
    """Run `CpuOps.attend`, with its arguments, or `CpuOps.store`: without lines of scores."""
    a = i64(block)
    B, M, H, G = a[15], a[16], a[18], a[19]
    n = draw(block, lane, 0, B * G)
    while n < B * G:
        for r in range(n % B * M, n % B * M + M):
            place_head(block, r, n // B)
        finished(block, 3)
        n = draw(block, lane, 0, B * G)
    if a[25] == 0:
        return
    wait_for(block, 3, B * G)
    row, heads, height = a[25], a[26], a[27]
    group = H // G
    parts = (group + heads - 1) // heads
    R = B * M
    blocks = (R + height - 1) // height
    num_tasks = G * parts * blocks
    scratch = a[24] + lane * height * heads * row * 4
    task = draw(block, lane, 4, num_tasks)
    while task < num_tasks:
        g, h, r = task // (parts * blocks), task // blocks % parts * heads, task % blocks * height
        end = min(r + height, R)
        while r < end:
            b = r // a[16]
            m = r - b * a[16]
            rows = num_alike(block, b, m, end - r)
            attend_rows(block, b, m, rows, g, g * group + h, min(heads, group - h), scratch)
            r += rows
        task = draw(block, lane, 4, num_tasks)
