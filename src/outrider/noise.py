"""Counter-based noise: the same (seed, position) gives the same randomness, whoever asks and whenever.

Sampling by the Gumbel-max trick picks `argmax_v(log p_v + g_v)` with g_v = -log(-log u_v), which has exactly the law p
(Gumbel 1954; Maddison et al. 2014). Here u_v is a hash of (seed, stream, position, v) and not the state of a
generator. So a token depends on the target's distribution and on its place in the text, and not on how many guesses were
checked before, on the batch, or on the proposer (coupled sampling: Daliri et al., arXiv 2408.07978).

The hash is 32-bit multiply-xorshift mixing (a bijection of 32-bit words with good avalanche, of the family that Wellons
published as `lowbias32`), keyed by two words. u has 32 bits, so every probability is met to within 2^-32.

Example: `pick(logits_RV, position_keys(seeds_R, positions_R, Stream.TARGET))` samples R rows at temperature 1.

On the CPU a compiled loop computes logarithms only for tokens that can still win: since -log u >= 1 - u, the noise is at
most `ln 2 * (leading zeros of 1 - u + 1)`, an integer operation.
"""

from enum import IntEnum

import numba
import numpy as np
import torch
from torch import Tensor

__all__ = ["Stream", "gumbel", "pick", "position_keys", "uniform"]

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9


class Stream(IntEnum):
    """Independent uses of one request's seed."""

    TARGET = 0  # the target's own token at a position (and a drafter that shares it, under the coupled rule)
    DRAFT = 1  # a drafter's own draws, when the ratio test needs them independent
    ACCEPT = 2  # the ratio tests
    RESIDUAL = 3  # the token drawn after a rejection


def _mix(words: Tensor) -> Tensor:
    words = words ^ (words >> 16)
    words = (words * 0x21F0AAAD) & WORD
    words = words ^ (words >> 15)
    words = (words * 0x735A2D97) & WORD
    return words ^ (words >> 15)


def position_keys(seeds_R: Tensor, positions_R: Tensor, stream: Stream, draw: int = 0) -> Tensor:
    """Two 32-bit key words for each row, int64 [R, 2].

    Args:
        seeds_R: int64, the request's seed; all 64 bits count.
        positions_R: int64, the index in the text of the token to be decided.
        stream: which use of the seed; `draw` numbers further draws at the same position.
    """
    low, high = seeds_R & WORD, (seeds_R >> 32) & WORD
    first = _mix((_mix((low + GOLDEN * (1 + int(stream))) & WORD) ^ positions_R) & WORD)
    second = _mix((_mix((high + GOLDEN * (17 + draw)) & WORD) + first) & WORD)
    return torch.stack((first, second), dim=-1)


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


def pick(logits_RV: Tensor, keys_R2: Tensor) -> Tensor:
    """`argmax(logits + gumbel)` of each row, int64 [R]: one draw from softmax(logits). -inf logits are never picked."""
    if logits_RV.device.type == "cpu":
        out_R = np.empty(logits_RV.shape[0], np.int64)
        _pick_rows(logits_RV.detach().numpy(), keys_R2.numpy().astype(np.uint64), out_R)
        return torch.from_numpy(out_R)
    return (logits_RV.double() + gumbel(keys_R2, logits_RV.shape[1])).argmax(-1)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _mix_word(word: np.uint64) -> np.uint64:
    mask = np.uint64(WORD)
    word ^= word >> np.uint64(16)
    word = (word * np.uint64(0x21F0AAAD)) & mask
    word ^= word >> np.uint64(15)
    word = (word * np.uint64(0x735A2D97)) & mask
    return word ^ (word >> np.uint64(15))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _token_word(token: int, first: np.uint64, second: np.uint64) -> np.uint64:
    mask = np.uint64(WORD)
    word = _mix_word(((np.uint64(token + 1) * np.uint64(GOLDEN)) & mask) ^ first)
    return _mix_word((word + second) & mask)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _gumbel_of(word: np.uint64) -> float:
    return -np.log(-np.log((np.float64(word) + 0.5) / 4294967296.0))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _pick_rows(logits_RV: np.ndarray, keys_R2: np.ndarray, out_R: np.ndarray) -> None:
    for row in range(logits_RV.shape[0]):
        logits_V = logits_RV[row]
        first, second = keys_R2[row, 0], keys_R2[row, 1]
        best = int(np.argmax(logits_V))
        best_score = logits_V[best] + _gumbel_of(_token_word(best, first, second))
        for token in range(logits_V.shape[0]):
            slack = best_score - np.float64(logits_V[token])
            if slack > 22.9:  # the largest noise that 32 bits can give is 22.87
                continue
            word = _token_word(token, first, second)
            if slack > 0.7 and (np.uint64(WORD) - word) >> np.uint64(max(0, 32 - int(slack / 0.6931471805599454))) != 0:
                continue
            score = np.float64(logits_V[token]) + _gumbel_of(word)
            if score > best_score or (score == best_score and token < best):
                best, best_score = token, score
        out_R[row] = best
