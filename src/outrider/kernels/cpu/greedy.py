"""The work between two reads of a greedy chain: the best token, its embedding, the next position.

A draft is a few short reads, each of which needs the token that the previous one chose. From Python that costs more
than the read: an argmax, an embedding and a placement are a dozen small calls, whose code the streamed weights have
evicted from the caches. As kernels they are records of the same graph as the read itself.

Worked example: logits 0.1 2.0 0.3 with column ids 5 7 9 choose token 7; its embedding row becomes the next input.
"""

from outrider.kernels.cpu.threads import ticket
from outrider.kernels.cpu.vector import f32, i64, inlined, kernel

__all__ = ["next_tokens", "shift"]


@inlined
def first_largest(x: int, count: int) -> int:
    """Return the index of the largest fp32 number; ties go to the first."""
    numbers = f32(x)
    best = 0
    for n in range(1, count):
        if numbers[n] > numbers[best]:
            best = n
    return best


@kernel
def next_tokens(block: int, lane: int) -> None:
    """Run `CpuOps.next_tokens`, with its arguments."""
    a = i64(block)
    logits, K, ids, tokens, R = a[0], a[1], a[2], a[3], a[4]
    r = ticket(block, 0)
    while r < R:
        token = first_largest(logits + r * K * 4, K)
        if ids != 0:
            token = i64(ids)[token]
        i64(tokens)[r] = token
        r = ticket(block, 0)


@kernel
def shift(block: int, lane: int) -> None:
    """Run `CpuOps.shifted`: keep the slots, and advance each slot's last length, position and write position."""
    a = i64(block)
    B, by, out, M = a[4], a[5], i64(a[6]), a[7]
    if ticket(block, 0) == 0:
        for field in range(4):
            source = i64(a[field])
            for b in range(B):
                out[field * B + b] = source[b * M + M - 1] + by if field > 0 else source[b]
