"""The distribution that a request asks for, computed from logits.

The transforms run in the order of Hugging Face's `generate`: temperature, top-k, top-p, min-p. Temperature 0 is greedy
decoding: the distribution is one-hot at the largest logit, ties going to the lowest token id.

    top-k   keep the k largest logits (ties with the k-th are kept)
    top-p   keep the smallest set of most probable tokens whose probabilities sum to at least p: the token that crosses
            the threshold stays (Holtzman et al., arXiv 1904.09751)
    min-p   keep tokens with at least `min_p` times the largest probability (Nguyen et al., arXiv 2407.01082)

The acceptance rules, and proposers that sample, see the transformed distribution only.

Example: at temperature 0.5, logits (2, 1, 0) become (4, 2, 0); top_k=2 makes them (4, 2, -inf).

Shapes: R rows, V vocabulary. The computation keeps the logits' own precision, at least float32.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outrider.errors import RequestError
from outrider.kernels.nucleus import nucleus
from outrider.noise import Stream, pick, position_key, position_keys
from outrider.records.display import shown
from outrider.records.values import check_text, flag, native, real, whole

__all__ = ["NO_TOKEN", "SamplingParams", "choose", "choose_one", "distribution", "has_law", "largest", "transform"]

REALS = ("temperature", "top_p", "min_p")

NO_TOKEN = -1
"""Placeholder for the token of a row without a distribution: its logits are not finite."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The sampling and stop settings of one request. The field names are vLLM's; the defaults are greedy decoding.

    temperature       divisor of the logits, from 0.01 to 100; 0 is greedy decoding
    top_k             number of tokens kept; 0 (or -1) keeps all
    top_p             probability mass kept, in (0, 1]; 1 keeps all
    min_p             least probability kept, as a share of the largest, in [0, 1); 0 keeps all
    seed              64-bit number; the request's randomness is a function of it and of positions in the text
    max_tokens        the most tokens of the answer
    stop              strings that end the answer and are cut from its text; a single string counts as a list of one
    stop_token_ids    tokens that end the answer, besides the target's own end-of-text tokens
    ignore_eos        continue after an end-of-text token

    Example: `SamplingParams(temperature=0.7, top_p=0.9, seed=1, max_tokens=64, stop="\\n\\n")`.

    Raises:
        RequestError: for a value of a wrong type or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 128
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        taken: dict[str, Any] = {name: real(name, getattr(self, name), RequestError) for name in REALS}
        taken |= {name: whole(name, getattr(self, name), RequestError) for name in ("top_k", "seed", "max_tokens")}
        taken |= {"stop": _stops(self.stop), "stop_token_ids": _token_ids(self.stop_token_ids)}
        taken |= {"ignore_eos": flag("ignore_eos", self.ignore_eos, RequestError)}
        for name, value in taken.items():  # frozen, so normalised values are set past the dataclass
            object.__setattr__(self, name, value)
        if not (self.temperature == 0 or 0.01 <= self.temperature <= 100):
            raise RequestError(f"temperature={self.temperature} must be 0 (greedy) or between 0.01 and 100")
        if self.top_k < -1:
            raise RequestError(f"top_k={shown(self.top_k)} must be 0 (keep all) or positive")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p={self.top_p} must be above 0 and at most 1 (keep all)")
        if not 0 <= self.min_p < 1:
            raise RequestError(f"min_p={self.min_p} must be at least 0 (keep all) and below 1")
        if not -(2**63) <= self.seed < 2**63:
            raise RequestError(f"seed={shown(self.seed)} must fit in 64 bits")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens={shown(self.max_tokens)} must be at least 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def law(self) -> tuple[float, int, float, float]:
        """The settings that the distribution depends on."""
        return self.temperature, self.top_k, self.top_p, self.min_p

    @property
    def filters(self) -> bool:
        """True if the settings cut off some tokens."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def _stops(stop: Any) -> tuple[str, ...]:
    found = native([] if stop is None else [stop] if isinstance(stop, str) else stop)
    if not isinstance(found, Iterable) or isinstance(found, Mapping | bytes | bytearray):
        raise RequestError(f"stop={shown(stop)} must be a string or a list of strings")
    strings = tuple(found)
    for string in strings:
        if not isinstance(string, str):
            raise RequestError(f"the stop string {shown(string)} is a {type(string).__name__}; give strings")
        if not string:
            raise RequestError("a stop string is empty; give at least one character")
        check_text(string, f"the stop string {shown(string)}")
    return tuple(dict.fromkeys(str(string) for string in strings))


def _token_ids(ids: Any) -> tuple[int, ...]:
    found = native(ids)
    if not isinstance(found, Iterable) or isinstance(found, Mapping | str | bytes | bytearray):
        raise RequestError(f"stop_token_ids={shown(ids)} must be a list of token ids")
    return tuple(whole("a stop token", one, RequestError) for one in found)


def transform(logits_RV: Tensor, sampling: SamplingParams) -> Tensor:
    """Return logits whose softmax is the distribution: scaled, with -inf for tokens that are cut off. New, [R, V]."""
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    if sampling.greedy:
        best_R1 = logits_RV.argmax(-1, keepdim=True)
        return torch.full_like(logits_RV, -torch.inf).scatter_(-1, best_R1, 0.0)
    logits_RV = logits_RV / sampling.temperature
    if 0 < sampling.top_k < logits_RV.shape[-1]:
        kth_R1 = logits_RV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < kth_R1, -torch.inf)
    if sampling.top_p < 1:
        logits_RV = _keep_top_p(logits_RV, sampling.top_p)
    if sampling.min_p > 0:
        # the softmax after top-p: both sides of the comparison are renormalised alike
        probs_RV = logits_RV.softmax(-1)
        floor_R1 = sampling.min_p * probs_RV.amax(-1, keepdim=True)
        logits_RV = logits_RV.masked_fill(probs_RV < floor_R1, -torch.inf)
    return logits_RV


def _keep_top_p(logits_RV: Tensor, top_p: float) -> Tensor:
    probs_RV = logits_RV.softmax(-1)
    if logits_RV.device.type == "cpu":
        return torch.from_numpy(nucleus(logits_RV.numpy(), probs_RV.numpy(), top_p))
    return logits_RV.masked_fill(_cut(logits_RV, probs_RV, top_p), -torch.inf)


def _cut(logits_RV: Tensor, probs_RV: Tensor, top_p: float) -> Tensor:
    """Return which tokens have a mass of `top_p` before them in falling order, bool [R, V]; ties by id."""
    order_RV = logits_RV.sort(dim=-1, descending=True, stable=True).indices
    sorted_RV = probs_RV.gather(-1, order_RV)
    mass_before_RV = sorted_RV.cumsum(-1) - sorted_RV
    cut_RV = mass_before_RV >= top_p
    cut_RV[:, 0] = False  # the most probable token stays, even with a top_p that rounds to nothing
    return torch.zeros_like(cut_RV).scatter_(-1, order_RV, cut_RV)


def distribution(logits_RV: Tensor, sampling: SamplingParams) -> Tensor:
    """Return the probabilities [R, V] of the transformed logits."""
    return transform(logits_RV, sampling).softmax(-1)


def largest(logits_RV: Tensor) -> Tensor:
    """Return the token with the largest logit of each row, int64 [R]; ties go to the lowest id."""
    if _on_numpy(logits_RV):
        return torch.from_numpy(np.argmax(logits_RV.numpy(), axis=-1))
    return logits_RV.argmax(-1)


def _on_numpy(logits_RV: Tensor) -> bool:
    """Return whether NumPy can read the logits; PyTorch would start a thread pool for microseconds of work."""
    return logits_RV.device.type == "cpu" and logits_RV.dtype in (torch.float32, torch.float64)


def choose(
    logits_RV: Tensor,
    positions_R: Tensor,
    samplings: list[SamplingParams],
    stream: Stream = Stream.TARGET,
    draw: int = 0,
) -> Tensor:
    """Choose one token from each row's distribution, int64 [R]: `argmax(log p + gumbel(seed, position))`.

    Args:
        logits_RV: raw logits.
        positions_R: int64, index of the chosen token in its text; rows of one request at the same position share their
            noise.
        samplings: the settings of each row's request.
        stream: the use of the seed.
        draw: a number that tells independent draws at the same positions apart.
    """
    # one pass over the logits for all rows with the same law
    groups: dict[tuple[float, int, float, float], list[int]] = {}
    for row, sampling in enumerate(samplings):
        groups.setdefault(sampling.law, []).append(row)
    if len(groups) == 1:
        return _chosen(logits_RV, positions_R, samplings, stream, draw)
    tokens_R = torch.empty_like(positions_R)
    for rows in groups.values():
        rows_R = torch.tensor(rows, device=tokens_R.device)
        some = [samplings[row] for row in rows]
        tokens_R[rows_R] = _chosen(logits_RV[rows_R], positions_R[rows_R], some, stream, draw)
    return tokens_R


def choose_one(logits_V: Tensor, position: int, sampling: SamplingParams) -> int:
    """Choose for a single row as `choose` does, with the target's noise, or return NO_TOKEN."""
    if sampling.greedy:
        token = int(largest(logits_V[None]))
        return token if math.isfinite(logits_V[token]) else NO_TOKEN
    if not has_law(logits_V[None]).item():
        return NO_TOKEN
    return int(_chosen(logits_V[None], torch.tensor([position]), [sampling], Stream.TARGET, 0))


def has_law(logits_RV: Tensor) -> Tensor:
    """Return which rows have a distribution, bool [R]: no NaN, no +inf, and not -inf alone. The maximum shows all."""
    if _on_numpy(logits_RV):
        return torch.from_numpy(np.isfinite(logits_RV.numpy().max(-1)))
    return logits_RV.amax(-1).isfinite()


def _chosen(
    logits_RV: Tensor, positions_R: Tensor, samplings: list[SamplingParams], stream: Stream, draw: int
) -> Tensor:
    """Choose where all rows have the same law; their seeds may differ."""
    law = samplings[0]
    if law.greedy:
        return largest(logits_RV)
    keys_R2 = _keys([sampling.seed for sampling in samplings], positions_R, stream, draw)
    if law.filters:
        return pick(transform(logits_RV, law), keys_R2)
    return pick(logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)), keys_R2, law.temperature)


def _keys(seeds: list[int], positions_R: Tensor, stream: Stream, draw: int) -> Tensor:
    """Return the key of each row's noise; on the host, Python numbers are faster than tiny tensors."""
    if positions_R.device.type == "cpu":
        pairs = zip(seeds, positions_R.tolist(), strict=True)
        return torch.tensor([position_key(seed, position, stream, draw) for seed, position in pairs])
    return position_keys(torch.tensor(seeds, device=positions_R.device), positions_R, stream, draw)
