"""DFlash-2's candidate selector: the token before, and the slot's state, choose among a slot's best tokens.

The slots of a block do not see each other's tokens. The selector keeps the W best columns of every slot, and walks
through the slots from the root on, with a bilinear score between neighbours:

    score_k(c) = logit_k(c) + <A[x_{k-1}] * H h_k, B[c]>        c one of slot k's W best; x_0 is the root

A greedy draft takes the best of them; a sampled one draws from the softmax of the scores, and nothing outside of the W.
Published networks have W = 16 and codebooks A, B of rank 256. Source: z-lab/dflash.

Worked example: logits 2.0, 1.9, 0.5, W = 2 and edges 0, 0.3, 9 give the scores 2.0, 2.2 and minus infinity.

Shapes: R rows, E hidden size, V vocabulary, K columns, W candidates, Q rank.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from outrider.ops.base import Ops

__all__ = ["SELECTOR", "CandidateSelector"]

SELECTOR = (
    "candidate_selector.predecessor_codebook",
    "candidate_selector.successor_codebook",
    "candidate_selector.hidden_projection.weight",
)


@final
class CandidateSelector:
    """Both codebooks, and the projection of the states.

    Args:
        weights: the tensors named above.
        top_k: candidates of a slot.
        ids_K: the tokens of the columns; None if column k is token k.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        top_k: int,
        ids_K: Tensor | None,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        before, after, hidden = SELECTOR
        self.ops = ops
        self.top_k = top_k
        self.before_VQ = weights[before].to(device, dtype)
        after_KQ = weights[after] if ids_K is None else weights[after][ids_K.to(weights[after].device)]
        self.after_KQ = after_KQ.to(device, dtype)
        self.hidden = ops.narrow().pack(weights[hidden].to(device, dtype))

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return self.before_VQ.nbytes + self.after_KQ.nbytes + self.hidden.num_bytes

    @torch.inference_mode()
    def scores(self, logits_RK: Tensor, states_RE: Tensor, before_R: Tensor) -> Tensor:
        """Return the scores of slots behind these tokens, minus infinity for all but the candidates."""
        dtype = logits_RK.dtype
        best = logits_RK.topk(min(self.top_k, logits_RK.shape[1]), dim=-1)
        states_RE = states_RE.to(self.ops.activation_dtype).contiguous()
        hidden_RQ = self.ops.norm_project(states_RE, None, 0.0, self.hidden).to(dtype)
        context_RQ1 = (self.before_VQ[before_R].to(dtype) * hidden_RQ)[..., None]
        edges_RW = (self.after_KQ[best.indices].to(dtype) @ context_RQ1)[..., 0]
        return torch.full_like(logits_RK, -torch.inf).scatter_(1, best.indices, best.values + edges_RW)
