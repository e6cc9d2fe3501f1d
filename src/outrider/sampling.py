"""The distribution that a request asks for, computed from logits.

The transforms run in the order of Hugging Face's `generate`: temperature, top-k, top-p, min-p. Temperature 0 is greedy
decoding: the distribution is one-hot at the largest logit, ties going to the lowest token id.

    top-k   keep the k largest logits (ties with the k-th are kept)
    top-p   keep the smallest set of most probable tokens whose probabilities sum to at least p: the token that crosses
            the threshold stays (Holtzman et al., arXiv 1904.09751)
    min-p   keep tokens with at least `min_p` times the largest probability (Nguyen et al., arXiv 2407.01082)

The acceptance rules, and proposers that sample, see the transformed distribution only. Penalties, biases and bans come
before all of this and depend on the text: `outrider.processors` applies them.

Example: at temperature 0.5, logits (2, 1, 0) become (4, 2, 0); top_k=2 makes them (4, 2, -inf).

Shapes: R rows, V vocabulary. The computation keeps the logits' own precision, at least float32.
"""

import math

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.nucleus import nucleus
from outrider.noise import Stream, pick, position_key, position_keys
from outrider.params import SamplingParams

__all__ = ["NO_TOKEN", "SamplingParams", "choose", "choose_one", "distribution", "has_law", "largest", "transform"]

NO_TOKEN = -1
"""Placeholder for the token of a row without a distribution: its logits are not finite."""


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
    return int(_chosen(logits_V[None], torch.tensor([position], device=logits_V.device), [sampling], Stream.TARGET, 0))


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
