"""DSpark's two heads on a block (arXiv 2607.05147): a bias from token to token, and a confidence.

The slots of a block do not see each other's tokens, so a later one may contradict an earlier one. A low-rank matrix
over pairs of tokens mends the logits of slot k once the token before it is known:

    logits_k = base_k + W_2 W_1[x_{k-1}]                     x_0 is the root
    confidence_k = sigmoid(w [h_k ; W_1[x_{k-1}]] + b)       how likely token k is accepted; h_k the slot's final state

Worked example: rank 256 over 151,936 tokens is 78 million numbers instead of 23 billion.

Shapes: R rows, E hidden size, V vocabulary, K columns, Q rank.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from outrider.ops.base import Ops

__all__ = ["CONFIDENCE", "MARKOV", "MarkovHead"]

MARKOV = ("markov_head.markov_w1.weight", "markov_head.markov_w2.weight")
CONFIDENCE = ("confidence_head.proj.weight", "confidence_head.proj.bias")


@final
class MarkovHead:
    """Both heads, packed.

    Args:
        weights: the tensors named above; those of the confidence may be absent.
        columns_K: the drafted columns; None for all.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        columns_K: Tensor | None,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        first, second = MARKOV
        self.ops = ops
        self.before_VQ = weights[first].to(device, dtype)
        after_KQ = weights[second] if columns_K is None else weights[second][columns_K.to(weights[second].device)]
        self.after = ops.narrow().pack(after_KQ.to(device, dtype))
        self.confidence: tuple[Tensor, Tensor] | None = None
        if CONFIDENCE[0] in weights:
            weight_1X, bias_1 = (weights[name].to(device, ops.activation_dtype) for name in CONFIDENCE)
            self.confidence = (weight_1X[0], bias_1)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return self.before_VQ.nbytes + self.after.num_bytes

    @torch.inference_mode()
    def biased(self, logits_RK: Tensor, before_R: Tensor) -> Tensor:
        """Return the logits of slots behind these tokens."""
        return logits_RK + self.ops.norm_project(self._embedded(before_R), None, 0.0, self.after)

    @torch.inference_mode()
    def confidences(self, states_RE: Tensor, before_R: Tensor) -> list[float]:
        """Return how likely the token of each slot is accepted, where the one before it was."""
        assert self.confidence is not None, "this network has no confidence head"
        weight_X, bias_1 = self.confidence
        inputs_RX = states_RE.to(weight_X.dtype)
        if len(weight_X) > inputs_RX.shape[1]:
            inputs_RX = torch.cat([inputs_RX, self._embedded(before_R)], dim=1)
        found: list[float] = (inputs_RX @ weight_X + bias_1).sigmoid().tolist()
        return found

    def _embedded(self, before_R: Tensor) -> Tensor:
        return self.before_VQ[before_R].to(self.ops.activation_dtype)
