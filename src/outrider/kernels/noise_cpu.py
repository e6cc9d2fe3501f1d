"""The Gumbel-max draw of `outrider.noise` as a compiled loop for the CPU.

The loop hashes all tokens, but computes logarithms only for those that can still win. Since -log u >= 1 - u, the noise
is at most -log(1 - u); and the bits of a float, read as an integer, are a lower bound of its binary logarithm. So the
bound costs one multiplication, and the loop runs in vector registers. The result is that of `noise.gumbel` and argmax.

Example: a row of 50,000 logits is read in chunks of 512; a chunk without a token above the bound is done.

Shapes: R rows, V vocabulary, C tokens of a chunk.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.compiled import jitted
from outrider.kernels.deferral import uninterrupted

__all__ = ["GOLDEN", "gumbel_of", "mix_word", "pick", "upper_bound"]

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
CHUNK = 512
LOG_2 = 0.6931471805599453


def pick(logits_RV: Tensor, keys_R2: Tensor, temperature: float) -> Tensor:
    """Draw as `outrider.noise.pick` does."""
    out_R = np.empty(logits_RV.shape[0], np.int64)
    _pick_rows(logits_RV.detach().numpy(), float(temperature), keys_R2.numpy().astype(np.uint32), out_R)
    return torch.from_numpy(out_R)


@jitted()
def mix_word(word: Any) -> Any:
    # a new name for every value keeps the arithmetic in 32 bits, where it vectorises
    a = np.uint32(word ^ np.uint32(word >> np.uint32(16)))
    b = np.uint32(a * np.uint32(0x21F0AAAD))
    c = np.uint32(b ^ np.uint32(b >> np.uint32(15)))
    d = np.uint32(c * np.uint32(0x735A2D97))
    return np.uint32(d ^ np.uint32(d >> np.uint32(15)))


@jitted()
def _token_word(number: Any, first: Any, second: Any) -> Any:
    word = mix_word(np.uint32(np.uint32(number * np.uint32(GOLDEN)) ^ first))
    return mix_word(np.uint32(word + second))


@jitted()
def gumbel_of(word: Any) -> Any:
    return -np.log(-np.log((np.float64(word) + 0.5) / 4294967296.0))


@jitted()
def _remainders(rest_C: np.ndarray, start: int, num: int, first: Any, second: Any) -> None:
    """Write a lower bound of (1 - u) * 2^31 for the `num` tokens from `start`."""
    base = np.uint32(start + 1)
    for i in range(num):
        word = _token_word(np.uint32(np.uint32(i) + base), first, second)
        left = np.uint32(np.uint32(WORD) ^ word)
        rest_C[i] = np.float32(np.int32(np.uint32(left >> np.uint32(1)))) + np.float32(0.25)


@jitted()
def upper_bound(logit: Any, bits: Any) -> Any:
    """Return an upper bound of every score: log2(x) >= bits(x) / 2^23 - 127, and 127 + 31 = 158."""
    return logit + (np.float32(158 * LOG_2) - np.float32(bits) * np.float32(LOG_2 / 2**23))


@jitted(error_model="numpy")
def _scale(logits_C: np.ndarray, temperature: Any, scaled_C: np.ndarray) -> None:
    for i in range(len(logits_C)):
        scaled_C[i] = logits_C[i] / temperature


@jitted()
def num_above(logits_C: np.ndarray, bits_C: np.ndarray, score: Any) -> Any:
    above = np.int32(0)
    for i in range(len(logits_C)):  # an index that is not counted from 0 would not vectorise
        above += np.int32(upper_bound(logits_C[i], bits_C[i]) > score)
    return above


@uninterrupted
@jitted(nogil=True)
def _pick_rows(logits_RV: np.ndarray, temperature: float, keys_R2: np.ndarray, out_R: np.ndarray) -> None:
    rest_C = np.empty(CHUNK, np.float32)
    bits_C = rest_C.view(np.int32)
    scaled_C = np.empty(CHUNK, logits_RV.dtype)  # chunk by chunk: a new row of logits costs as much as its noise
    number = logits_RV.dtype.type
    vocab_size = logits_RV.shape[1]
    for row in range(logits_RV.shape[0]):
        logits_V = logits_RV[row]
        first, second = keys_R2[row, 0], keys_R2[row, 1]
        best, best_score, safe_score = 0, -np.inf, number(-np.inf)
        for start in range(0, vocab_size, CHUNK):
            num = min(CHUNK, vocab_size - start)
            _scale(logits_V[start : start + num], number(temperature), scaled_C)
            _remainders(rest_C, start, num, first, second)
            if num_above(scaled_C[:num], bits_C, safe_score) == 0:
                continue
            for i in range(num):
                if upper_bound(scaled_C[i], bits_C[i]) > safe_score:
                    word = _token_word(np.uint32(start + i + 1), first, second)
                    score = np.float64(scaled_C[i]) + gumbel_of(word)
                    if score > best_score:
                        best, best_score = start + i, score
                        safe_score = number(score - 1e-4 - 1e-6 * abs(score))  # more than float32 can round away
        out_R[row] = best
