"""The seam for drafters that carry a state of their own from token to token: EAGLE-3, MTP, and their like.

Such a head has one or a few layers and a cache. Slot t of that cache reads the pair (state of the target at position t,
token at position t + 1) and predicts the token at position t + 2. For committed text the state comes from the target's
features (`fuse`); while drafting it is the head's own last output. After verification the drafter's own entries are
dropped and the accepted positions are read again with the target's features.

    text      x0 x1 x2 r          r is the root; the target has features of x0 x1 x2
    slots     (f0,x1) (f1,x2) (f2,r)                      -> d1, state h
              (h,d1)                                      -> d2, state h'   dropped after verification

A draft is a handful of reads of a few rows each, so what surrounds them counts. A read is therefore one body of
operations over two inputs, token embeddings and states, laid one below the other: a back end may record it and repeat
it (`Ops.replay`). Greedy chains are recorded as a whole (`chain.py`).

Shapes: R rows, E hidden size of the head, F features, K columns of its output head, M rows of a slot, B slots.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.models.chain import DraftStep
from outrider.ops.base import GraphBody, GraphCache, Ops, Result
from outrider.placement import Placement

__all__ = ["Reading", "RecurrentHead", "below", "run"]


class Reading(NamedTuple):
    """Output states [R, E], which `predict` and the next `read` take, and logits [N, K] of the last N rows, if any."""

    states_RE: Tensor
    logits_NK: Tensor | None


class RecurrentHead(ABC):
    """Weights of such a head, packed for one device."""

    @property
    @abstractmethod
    def feature_layers(self) -> tuple[int, ...]:
        """The target's hidden states that `fuse` reads, in order."""

    @property
    @abstractmethod
    def ids_K(self) -> Tensor | None:
        """Target ids of the output columns; None if there is one for every token of the target."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory of the weights that are not shared with the target."""

    @abstractmethod
    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        """The cache it needs."""

    @abstractmethod
    def fuse(self, features_RF: Tensor) -> Tensor:
        """Input states [R, E] from the target's features."""

    @abstractmethod
    def read(
        self,
        states_RE: Tensor,
        tokens_R: Tensor,
        placement: Placement,
        cache: KVCache,
        *,
        num_predicted: int = 0,
        graph_cache: GraphCache | None = None,
    ) -> Reading:
        """Read pairs of state and target token id, R = B * M rows as `placement` says.

        Keys and values are written to `cache`.

        Args:
            num_predicted: rows, the last ones, whose logits are wanted too.
            graph_cache: of this cache, empty at first; lets a back end repeat reads of the same shape.
        """

    @abstractmethod
    def inputs(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement) -> Tensor:
        """What a read takes: embeddings of the tokens above the states, [2R, E]."""

    @abstractmethod
    def draft_step(self, cache: KVCache) -> DraftStep | None:
        """A read as operations of one back end, for greedy chains; None if predicting is none."""

    @abstractmethod
    def predict(self, states_RE: Tensor) -> Tensor:
        """Logits [R, K] of output states."""


def below(upper_RE: Tensor, lower_RE: Tensor, dtype: torch.dtype) -> Tensor:
    """Both inputs of a body in one tensor [2R, E], which it takes apart again."""
    R = len(upper_RE)
    both_RE = torch.empty(2 * R, lower_RE.shape[1], dtype=dtype, device=lower_RE.device)
    both_RE[:R] = upper_RE
    both_RE[R:] = lower_RE
    return both_RE


def run(
    ops: Ops, graph_cache: GraphCache | None, num_predicted: int, body: GraphBody, both_RE: Tensor, placement: Placement
) -> Reading:
    """Run a head's body, or repeat it."""
    if graph_cache is None:
        result: Result = body(both_RE, placement)
    else:
        result = ops.replay(graph_cache, num_predicted, body, both_RE, placement)
    assert result.features_RT is not None, "a head's body gives its states"
    return Reading(result.features_RT, result.logits_RV)
