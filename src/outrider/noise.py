"""Counter-based noise: the same (seed, position) always gives the same randomness.

Sampling by the Gumbel-max trick picks `argmax_v(log p_v + g_v)` with g_v = -log(-log u_v), which has exactly the law p
(Gumbel 1954; Maddison et al. 2014). Here u_v is a hash of (seed, stream, position, v) and not the state of a
generator. So a token depends on the target's distribution and on its position in the text, and not on how many guesses
were checked before, on the batch, or on the proposer (coupled sampling: Daliri et al., arXiv 2408.07978).

The hash is 32-bit multiply-xorshift mixing (a bijection of 32-bit words with good avalanche, of the family that Wellons
published as `lowbias32`), keyed by two words. u has 32 bits, so every probability is met to within 2^-32.

Example: `pick(logits_RV, position_keys(seeds_R, positions_R, Stream.TARGET))` samples R rows at temperature 1.
"""

import struct
from enum import IntEnum
from importlib.util import find_spec
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from outrider.kernels import noise_cpu

__all__ = [
    "ChainLaws",
    "Key",
    "Stream",
    "chain_law",
    "drawn",
    "gumbel",
    "pick",
    "position_key",
    "position_keys",
    "uniform",
]

Words = TypeVar("Words", int, Tensor)

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9


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
        """One number in (0, 1), the same as `uniform` returns for these words."""
        word = _mix((_mix(GOLDEN ^ self.first) + self.second) & WORD)
        return (word + 0.5) / 2.0**32


class ChainLaws(NamedTuple):
    """The draws of rows of drafted chains, with the target's noise.

    numbers_R4   int64, a row of `chain_law` each
    level        tokens between the chain's first and the one that is drawn
    """

    numbers_R4: Tensor
    level: int


def chain_law(temperature: float, seed: int, position: int) -> tuple[int, int, int, int]:
    """Return the numbers that the tokens of a chain are drawn by; its first token has this text position.

    They are the bits of the temperature, what the seed adds to both words of a `Key`, and the position.
    """
    [bits] = struct.unpack("q", struct.pack("d", temperature))
    low, high = seed & WORD, (seed >> 32) & WORD
    return bits, _low_word(low, Stream.TARGET), _high_word(high, 0), position


def position_key(seed: int, position: int, stream: Stream, draw: int = 0) -> Key:
    """Return `position_keys` of a single decision, on the host."""
    first = _first_word(seed & WORD, position, stream)
    return Key(first, _second_word((seed >> 32) & WORD, first, draw))


def position_keys(seeds_R: Tensor, positions_R: Tensor, stream: Stream, draw: int = 0) -> Tensor:
    """Return two 32-bit key words for each row, int64 [R, 2].

    Args:
        seeds_R: int64, the request's seed; all 64 bits count.
        positions_R: int64, the index in the text of the token to be decided.
        stream: the use of the seed.
        draw: a number that tells further draws at the same position apart.
    """
    first_R = _first_word(seeds_R & WORD, positions_R, stream)
    return torch.stack((first_R, _second_word((seeds_R >> 32) & WORD, first_R, draw)), dim=-1)


def _first_word(low: Words, position: Words, stream: Stream) -> Words:
    return _mix((_low_word(low, stream) ^ position) & WORD)


def _second_word(high: Words, first: Words, draw: int) -> Words:
    return _mix((_high_word(high, draw) + first) & WORD)


def _low_word(low: Words, stream: Stream) -> Words:
    return _mix((low + GOLDEN * (1 + int(stream))) & WORD)


def _high_word(high: Words, draw: int) -> Words:
    return _mix((high + GOLDEN * (17 + draw)) & WORD)


def _uniform_RV(keys_R2: Tensor, vocab_size: int) -> Tensor:
    return _uniform_of(keys_R2, torch.arange(vocab_size, device=keys_R2.device))


def _uniform_of(keys_R2: Tensor, tokens_V: Tensor) -> Tensor:
    words_RV = _mix((((1 + tokens_V) * GOLDEN) & WORD) ^ keys_R2[:, :1])
    words_RV = _mix((words_RV + keys_R2[:, 1:]) & WORD)
    return (words_RV.to(torch.float64) + 0.5) / 2.0**32


def uniform(keys_R2: Tensor) -> Tensor:
    """Return one number in (0, 1) for each row, float64 [R]."""
    return _uniform_RV(keys_R2, 1)[:, 0]


def gumbel(keys_R2: Tensor, vocab_size: int) -> Tensor:
    """Return standard Gumbel noise for every token of each row, float64 [R, V]."""
    return -torch.log(-torch.log(_uniform_RV(keys_R2, vocab_size)))


def pick(logits_RV: Tensor, keys_R2: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw a token of each row from softmax(logits / temperature), int64 [R]: `argmax(logits / temperature + gumbel)`.

    -inf logits are never picked.
    """
    if logits_RV.device.type == "cpu":
        return noise_cpu.pick(logits_RV, keys_R2, temperature)
    if temperature != 1:
        logits_RV = logits_RV / temperature
    if logits_RV.device.type == "cuda" and find_spec("triton") is not None:
        from outrider.kernels import noise_triton

        return noise_triton.pick(logits_RV, keys_R2)
    return (logits_RV.double() + gumbel(keys_R2, logits_RV.shape[1])).argmax(-1)


def drawn(logits_RK: Tensor, ids_K: Tensor | None, laws: ChainLaws) -> Tensor:
    """Draw a column of each row by its law, int64 [R]; a row at temperature 0 takes its largest logit.

    Args:
        ids_K: the tokens of the columns, whose noise they have; None if column k is token k.
    """
    bits_R, low_R, high_R, first_R = laws.numbers_R4.unbind(-1)
    words_R = _mix((low_R ^ (first_R + laws.level)) & WORD)
    keys_R2 = torch.stack((words_R, _mix((high_R + words_R) & WORD)), dim=-1)
    tokens_K = torch.arange(logits_RK.shape[1], device=logits_RK.device) if ids_K is None else ids_K
    temperature_R1 = bits_R.contiguous().view(torch.float64)[:, None]
    scores_RK = logits_RK / temperature_R1.to(logits_RK.dtype).clamp_min(1e-3)
    noise_RK = -torch.log(-torch.log(_uniform_of(keys_R2, tokens_K)))
    return torch.where(temperature_R1 > 0, scores_RK.double() + noise_RK, logits_RK.double()).argmax(-1)
