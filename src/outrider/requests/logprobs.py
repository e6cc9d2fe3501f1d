"""Log-probabilities of emitted tokens: raw ones, of the target's own logits.

They say what the model thinks of the text that it writes: no processor, no temperature, no filter changes them (vLLM's
default, `raw_logprobs`, but for the mask of a form, which vLLM applies before). A token that a form forbids can so be
the most probable one.

Example: logits (2, 1, 0) and the token 1 give log-probability -1.41, rank 2, and with one more token ((0, -0.41),).

Shapes: M rows, R emitted tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TokenLogprob", "token_logprobs"]


class TokenLogprob(NamedTuple):
    """The log-probability of one emitted token.

    token     its id
    logprob   its natural log-probability
    rank      1 for the most probable token
    top       the most probable tokens with their log-probabilities, as many as the request asked for
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


def token_logprobs(
    logits_MV: Tensor, rows: Sequence[int], tokens: Sequence[int], num_top: int
) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of tokens, each behind its row."""
    logits_RV = torch.stack([logits_MV[row] for row in rows])
    logprobs_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)).log_softmax(-1)
    own_R1 = logprobs_RV.gather(1, torch.tensor(tokens, device=logits_RV.device)[:, None])
    ranks = (1 + (logprobs_RV > own_R1).sum(-1)).tolist()
    top = logprobs_RV.topk(min(num_top, logprobs_RV.shape[1]), dim=-1)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    tops = [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return tuple(map(TokenLogprob, tokens, own_R1[:, 0].tolist(), ranks, tops))
