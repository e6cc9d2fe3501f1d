"""The smallest set of most probable tokens that holds a given mass, without sorting the vocabulary.

Nucleus sampling (Holtzman et al., arXiv 1904.09751) keeps tokens by falling probability until their sum reaches
`top_p`; the token that crosses the threshold stays, and equal probabilities are taken by token id. Sorting 50,000
logits takes as long as a forward of a small model. Two facts avoid it:

- Tokens with p <= (1 - top_p) / V hold at most 1 - top_p together, so those above hold the whole nucleus.
- The remainder is divided as in quickselect: around a pivot, only the side where the mass is reached is searched again.

Worked example: p = (0.5, 0.2, 0.2, 0.1), top_p = 0.6. The pivot 0.2 divides into 0.5 above and 0.4 equal; 0.5 < 0.6 <=
0.9, so tokens are taken among the equal ones by id: token 1 reaches 0.7, and token 2 is cut.

Shapes: R rows, V vocabulary.
"""

from typing import Any

import numpy as np

from outrider.kernels.compiled import jitted
from outrider.kernels.deferral import uninterrupted

__all__ = ["nucleus"]


def nucleus(logits_RV: np.ndarray, probs_RV: np.ndarray, top_p: float) -> np.ndarray:
    """Return a copy of the logits in which tokens outside the nucleus are -inf.

    Args:
        logits_RV: float32 or float64.
        probs_RV: their softmax.
        top_p: the mass to hold, above 0 and below 1. Where rounding leaves less than that, all tokens stay.
    """
    kept_RV = np.full_like(logits_RV, -np.inf)
    _keep_rows(logits_RV, probs_RV, top_p, kept_RV)
    return kept_RV


@uninterrupted
@jitted(nogil=True)
def _keep_rows(logits_RV: np.ndarray, probs_RV: np.ndarray, top_p: float, kept_RV: np.ndarray) -> None:
    vocab_size = logits_RV.shape[1]
    tokens_V = np.empty(vocab_size, np.int32)
    for row in range(logits_RV.shape[0]):
        logits_V, probs_V, kept_V = logits_RV[row], probs_RV[row], kept_RV[row]
        num = _likely(probs_V, (1.0 - top_p) / vocab_size, tokens_V)
        least, last = _boundary(logits_V, probs_V, tokens_V[:num], top_p)
        if last < 0:
            kept_V[:] = logits_V
            continue
        for place in range(num):
            token = tokens_V[place]
            if logits_V[token] > least or (logits_V[token] == least and token <= last):
                kept_V[token] = logits_V[token]


@jitted()
def _likely(probs_V: np.ndarray, floor: float, tokens_V: np.ndarray) -> Any:
    """Write the tokens above the floor, and return their number."""
    num = 0
    for token in range(len(probs_V)):
        tokens_V[num] = token
        num += probs_V[token] > floor
    return num


@jitted()
def _boundary(logits_V: np.ndarray, probs_V: np.ndarray, tokens_N: np.ndarray, top_p: float) -> Any:
    """Return the smallest logit in the nucleus and the last token that has it; -1 if the mass is never reached."""
    rest_N = tokens_N.copy()
    other_N = np.empty_like(rest_N)
    mass, num = 0.0, len(rest_N)
    while num > 0:
        pivot = logits_V[rest_N[num // 2]]
        above, equal = 0.0, 0.0
        num_above, num_below = 0, 0
        for place in range(num):
            token = rest_N[place]
            if logits_V[token] > pivot:
                above += probs_V[token]
                num_above += 1
            elif logits_V[token] == pivot:
                equal += probs_V[token]
        wants_above = mass + above >= top_p
        if not wants_above and mass + above + equal >= top_p:
            return pivot, _crossing(logits_V, probs_V, tokens_N, pivot, top_p - mass - above)
        for place in range(num):
            token = rest_N[place]
            other_N[num_below] = token
            num_below += logits_V[token] > pivot if wants_above else logits_V[token] < pivot
        mass += 0.0 if wants_above else above + equal
        rest_N, other_N, num = other_N, rest_N, num_below
    return logits_V[0], -1


@jitted()
def _crossing(logits_V: np.ndarray, probs_V: np.ndarray, tokens_N: np.ndarray, logit: Any, missing: float) -> Any:
    """Return the token, among those with this logit by id, at which the missing mass is reached."""
    last, mass = -1, 0.0
    for token in tokens_N:
        if logits_V[token] == logit and (last < 0 or mass < missing):
            last = token
            mass += probs_V[token]
    return last
