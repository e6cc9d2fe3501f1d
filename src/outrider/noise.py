"""Counter-based noise: the same (seed, position) gives the same randomness, whoever asks and whenever.

Sampling by the Gumbel-max trick picks `argmax_v(log p_v + g_v)` with g_v = -log(-log u_v), which has exactly the law p
(Gumbel 1954; Maddison et al. 2014). Here u_v is a hash of (seed, stream, position, v) and not the state of a
generator. So a token depends on the target's distribution and on its place in the text, and not on how many guesses
were checked before, on the batch, or on the proposer (coupled sampling: Daliri et al., arXiv 2408.07978).

The hash is 32-bit multiply-xorshift mixing (a bijection of 32-bit words with good avalanche, of the family that Wellons
published as `lowbias32`), keyed by two words. u has 32 bits, so every probability is met to within 2^-32.

Example: `pick(logits_RV, position_keys(seeds_R, positions_R, Stream.TARGET))` samples R rows at temperature 1.

On the CPU a compiled loop hashes all tokens but computes logarithms only for those that can still win. Since
-log u >= 1 - u, the noise is at most -log(1 - u); and the bits of a float, read as an integer, are a lower bound of its
binary logarithm, so this bound costs one multiplication and the loop runs in vector registers.
"""

from enum import IntEnum
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

from outrider.kernels.deferral import uninterrupted

__all__ = ["Key", "Stream", "gumbel", "pick", "position_key", "position_keys", "uniform"]

Words = TypeVar("Words", int, Tensor)

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
CHUNK = 512
LOG_2 = 0.6931471805599453


class Stream(IntEnum):
    """Independent uses of one request's seed."""

    TARGET = 0  # the target's own token at a position (and a drafter that shares it, under the coupled rule)
    DRAFT = 1  # a drafter's own draws, when the ratio test needs them independent
    ACCEPT = 2  # the ratio tests
    RESIDUAL = 3  # the token drawn after a rejection


def _mix(words: Words) -> Words:
    words = words ^ (words >> 16)
    words = (words * 0x21F0AAAD) & WORD
    words = words ^ (words >> 15)
    words = (words * 0x735A2D97) & WORD
    return words ^ (words >> 15)


class Key(NamedTuple):
    """Two 32-bit words that select the noise of one decision."""

    first: int
    second: int

    @property
    def uniform(self) -> float:
        """One number in (0, 1), the same as `uniform` gives for these words."""
        word = _mix((_mix(GOLDEN ^ self.first) + self.second) & WORD)
        return (word + 0.5) / 2.0**32


def position_key(seed: int, position: int, stream: Stream, draw: int = 0) -> Key:
    """`position_keys` of a single decision, on the host."""
    first = _first_word(seed & WORD, position, stream)
    return Key(first, _second_word((seed >> 32) & WORD, first, draw))


def position_keys(seeds_R: Tensor, positions_R: Tensor, stream: Stream, draw: int = 0) -> Tensor:
    """Two 32-bit key words for each row, int64 [R, 2].

    Args:
        seeds_R: int64, the request's seed; all 64 bits count.
        positions_R: int64, the index in the text of the token to be decided.
        stream: which use of the seed; `draw` numbers further draws at the same position.
    """
    first_R = _first_word(seeds_R & WORD, positions_R, stream)
    return torch.stack((first_R, _second_word((seeds_R >> 32) & WORD, first_R, draw)), dim=-1)


def _first_word(low: Words, position: Words, stream: Stream) -> Words:
    return _mix((_mix((low + GOLDEN * (1 + int(stream))) & WORD) ^ position) & WORD)


def _second_word(high: Words, first: Words, draw: int) -> Words:
    return _mix((_mix((high + GOLDEN * (17 + draw)) & WORD) + first) & WORD)


def _uniform_RV(keys_R2: Tensor, vocab_size: int) -> Tensor:
    tokens_V = torch.arange(1, vocab_size + 1, device=keys_R2.device)
    words_RV = _mix(((tokens_V * GOLDEN) & WORD) ^ keys_R2[:, :1])
    words_RV = _mix((words_RV + keys_R2[:, 1:]) & WORD)
    return (words_RV.to(torch.float64) + 0.5) / 2.0**32


def uniform(keys_R2: Tensor) -> Tensor:
    """One number in (0, 1) for each row, float64 [R]."""
    return _uniform_RV(keys_R2, 1)[:, 0]


def gumbel(keys_R2: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise for every token of each row, float64 [R, V]."""
    return -torch.log(-torch.log(_uniform_RV(keys_R2, vocab_size)))


def pick(logits_RV: Tensor, keys_R2: Tensor, temperature: float = 1.0) -> Tensor:
    """`argmax(logits / temperature + gumbel)` of each row, int64 [R]: one draw from softmax(logits / temperature).

    -inf logits are never picked.
    """
    if logits_RV.device.type == "cpu":
        out_R = np.empty(logits_RV.shape[0], np.int64)
        _pick_rows(logits_RV.detach().numpy(), float(temperature), keys_R2.numpy().astype(np.uint32), out_R)
        return torch.from_numpy(out_R)
    if temperature != 1:
        logits_RV = logits_RV / temperature
    if logits_RV.device.type == "cuda" and find_spec("triton") is not None:
        from outrider.kernels.noise_triton import pick as pick_at_once

        return pick_at_once(logits_RV, keys_R2)
    return (logits_RV.double() + gumbel(keys_R2, logits_RV.shape[1])).argmax(-1)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _mix_word(word: Any) -> Any:
    # a new name for every value keeps the arithmetic in 32 bits, where it vectorises
    a = np.uint32(word ^ np.uint32(word >> np.uint32(16)))
    b = np.uint32(a * np.uint32(0x21F0AAAD))
    c = np.uint32(b ^ np.uint32(b >> np.uint32(15)))
    d = np.uint32(c * np.uint32(0x735A2D97))
    return np.uint32(d ^ np.uint32(d >> np.uint32(15)))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _token_word(number: Any, first: Any, second: Any) -> Any:
    word = _mix_word(np.uint32(np.uint32(number * np.uint32(GOLDEN)) ^ first))
    return _mix_word(np.uint32(word + second))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _gumbel_of(word: Any) -> Any:
    return -np.log(-np.log((np.float64(word) + 0.5) / 4294967296.0))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _remainders(rest_C: np.ndarray, start: int, num: int, first: Any, second: Any) -> None:
    """At most (1 - u) * 2^31 for the `num` tokens from `start`."""
    base = np.uint32(start + 1)
    for i in range(num):
        word = _token_word(np.uint32(np.uint32(i) + base), first, second)
        left = np.uint32(np.uint32(WORD) ^ word)
        rest_C[i] = np.float32(np.int32(np.uint32(left >> np.uint32(1)))) + np.float32(0.25)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _limit(logit: Any, bits: Any) -> Any:
    """No score exceeds this: log2(x) >= bits(x) / 2^23 - 127, and 127 + 31 = 158."""
    return logit + (np.float32(158 * LOG_2) - np.float32(bits) * np.float32(LOG_2 / 2**23))


@numba.njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _scale(logits_C: np.ndarray, temperature: Any, scaled_C: np.ndarray) -> None:
    for i in range(len(logits_C)):
        scaled_C[i] = logits_C[i] / temperature


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _num_above(logits_C: np.ndarray, bits_C: np.ndarray, score: Any) -> Any:
    above = np.int32(0)
    for i in range(len(logits_C)):  # an index that is not counted from 0 would not vectorise
        above += np.int32(_limit(logits_C[i], bits_C[i]) > score)
    return above


@uninterrupted
@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
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
            if _num_above(scaled_C[:num], bits_C, safe_score) == 0:
                continue
            for i in range(num):
                if _limit(scaled_C[i], bits_C[i]) > safe_score:
                    word = _token_word(np.uint32(start + i + 1), first, second)
                    score = np.float64(scaled_C[i]) + _gumbel_of(word)
                    if score > best_score:
                        best, best_score = start + i, score
                        safe_score = number(score - 1e-4 - 1e-6 * abs(score))  # more than float32 can round away
        out_R[row] = best
