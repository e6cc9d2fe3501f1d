"""The seam for drafters that carry a state of their own from token to token: EAGLE-3, MTP, and their like.

Such a head has one or a few layers and a cache. Slot t of that cache reads the pair (state of the target at position t,
token at position t + 1) and predicts the token at position t + 2. For committed text the state comes from the target's
features (`fuse`); while drafting it is the head's own last output. After verification the drafter's own entries are
dropped and the accepted positions are read again with the target's features.

    text      x0 x1 x2 r          r is the root; the target has features of x0 x1 x2
    slots     (f0,x1) (f1,x2) (f2,r)                      -> d1, state h
              (h,d1)                                      -> d2, state h'   dropped after verification

A draft is a handful of reads of a few rows each, so the overhead of a call matters. A read is therefore one body of
operations over two inputs, token embeddings above states in one tensor, which a back end may record and replay
(`Ops.replay`). Greedy chains are recorded as a whole (`proposers/drafting/chain.py`).

Shapes: R rows, E hidden size of the head.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.models.draft_network import DraftNetwork, Reading
from outrider.ops.base import GraphBody, GraphCache, Ops, Result
from outrider.placement import Placement

__all__ = ["RecurrentHead", "below", "run"]


class RecurrentHead(DraftNetwork):
    """Weights of such a head, packed for one device."""

    @property
    @abstractmethod
    def feature_layers(self) -> tuple[int, ...]:
        """The target's hidden states that `fuse` reads, in order."""

    @abstractmethod
    def store(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement, cache: KVCache) -> None:
        """Read pairs as `read` does, and write their keys and values to `cache` without computing their outputs."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer, None for all of the text; empty if no layer has one."""
        return ()

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory of the weights that are not shared with the target, in bytes."""

    @abstractmethod
    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        """Return the plan of the cache that it needs."""


def below(upper_RE: Tensor, lower_RE: Tensor, dtype: torch.dtype) -> Tensor:
    """Stack both inputs of a body into one tensor [2R, E], which the body takes apart again."""
    R = len(upper_RE)
    both_RE = torch.empty(2 * R, lower_RE.shape[1], dtype=dtype, device=lower_RE.device)
    both_RE[:R] = upper_RE
    both_RE[R:] = lower_RE
    return both_RE


def run(
    ops: Ops, graph_cache: GraphCache | None, num_predicted: int, body: GraphBody, both_RE: Tensor, placement: Placement
) -> Reading:
    """Run a head's body, or replay its recording."""
    if graph_cache is None:
        result: Result = body(both_RE, placement)
    else:
        result = ops.replay(graph_cache, num_predicted, body, both_RE, placement)
    assert result.features_RT is not None, "a head's body gives its states"
    return Reading(result.features_RT, result.logits_RV)
