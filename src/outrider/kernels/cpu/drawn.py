"""The draw of a sampled chain between two reads: `argmax(logit / T + gumbel)` over the columns of a drafter.

It is the draw of `noise_cpu.py`, with two differences: the noise of a column is that of its token, since columns are
some of the vocabulary, and a row at temperature 0 takes its largest logit. Most columns are decided by an upper bound
of their noise, in vector registers.

Example: columns of the tokens 7 and 3 at the text position 20 use the noise of the tokens 7 and 3 at position 20.

A law is four int64 numbers for each row: the temperature's bits as fp64, two words of its seed, and the text position
of the chain's first token (`noise.chain_law`).
"""

import numpy as np

from outrider.kernels.cpu.greedy import first_largest
from outrider.kernels.cpu.threads import stack, ticket
from outrider.kernels.cpu.vector import f32, f64, i32, i64, inlined, kernel
from outrider.kernels.noise_cpu import GOLDEN, gumbel_of, mix_word, upper_bound

__all__ = ["drawn_tokens"]

CHUNK = 512
LAW = 4
SCRATCH_BYTES = 8 * CHUNK
WORD = 0xFFFFFFFF


@inlined
def word_of(token: int, first: int, second: int) -> int:
    """Return the random word of a token."""
    word: int = mix_word(np.uint32(np.uint32(np.uint32(token + 1) * np.uint32(GOLDEN)) ^ np.uint32(first)))
    random: int = mix_word(np.uint32(np.uint32(word) + np.uint32(second)))
    return random


@inlined
def drawn(logits: int, K: int, ids: int, temperature: float, first: int, second: int, scratch: int) -> int:
    """Return the column that is drawn; ties go to the first."""
    rest, bits, scaled = f32(scratch), i32(scratch), f32(scratch + 4 * CHUNK)
    divisor = np.float32(temperature)
    best, best_score, safe_score = 0, -np.inf, np.float32(-np.inf)
    for start in range(0, K, CHUNK):
        num = min(CHUNK, K - start)
        numbers, tokens = f32(logits + 4 * start), i64(ids + 8 * start)
        for i in range(num):
            left = np.uint32(np.uint32(WORD) ^ word_of(tokens[i], first, second))
            rest[i] = np.float32(np.int32(np.uint32(left >> np.uint32(1)))) + np.float32(0.25)
        for i in range(num):
            scaled[i] = numbers[i] / divisor
        above = np.int32(0)
        for i in range(num):
            above += np.int32(upper_bound(scaled[i], bits[i]) > safe_score)
        if above == 0:
            continue
        for i in range(num):
            if upper_bound(scaled[i], bits[i]) > safe_score:
                score = np.float64(scaled[i]) + gumbel_of(word_of(tokens[i], first, second))
                if score > best_score:
                    best, best_score = start + i, score
                    safe_score = np.float32(score - 1e-4 - 1e-6 * abs(score))  # more than fp32 can round away
    return best


@kernel
def drawn_tokens(block: int, lane: int) -> None:
    """Run `CpuOps.next_tokens` with a law."""
    a = i64(block)
    logits, K, ids, tokens, R, laws, level = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
    scratch = stack(SCRATCH_BYTES)
    r = ticket(block, 0)
    while r < R:
        law = i64(laws + r * LAW * 8)
        temperature = f64(laws + r * LAW * 8)[0]
        if temperature == 0.0:
            column = first_largest(logits + r * K * 4, K)
        else:
            first = mix_word(np.uint32(np.uint32(law[1]) ^ np.uint32(law[3] + level)))
            second = mix_word(np.uint32(np.uint32(law[2]) + np.uint32(first)))
            column = drawn(logits + r * K * 4, K, ids, temperature, first, second, scratch)
        i64(tokens)[r] = i64(ids)[column]
        r = ticket(block, 0)
