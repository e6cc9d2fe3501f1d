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
it (`Ops.replay`). A greedy chain is one body as a whole: between two reads stand `Ops.next_tokens` and `Ops.shifted`.

Shapes: R rows, E hidden size of the head, F features, K columns of its output head, M rows of a slot, B slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.models.ops import Body, Ops, Placement, Programs, Result

__all__ = ["Reading", "RecurrentHead", "below", "chain_body", "run"]


class Reading(NamedTuple):
    """Output states [R, E], which `predict` and the next `read` take, and logits [N, K] of the last N rows, if any."""

    states_RE: Tensor
    logits_NK: Tensor | None


class RecurrentHead(ABC):
    """Weights of such a head, packed for one device."""

    @property
    @abstractmethod
    def taps(self) -> tuple[int, ...]:
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
        programs: Programs | None = None,
    ) -> Reading:
        """Read pairs of state and target token id, R = B * M rows as `placement` says.

        Keys and values are written to `cache`.

        Args:
            num_predicted: rows, the last ones, whose logits are wanted too.
            programs: of this cache, empty at first; lets a back end repeat reads of the same shape.
        """

    @property
    @abstractmethod
    def chains(self) -> bool:
        """Whether `chain` works: reading and predicting are operations of one back end."""

    @abstractmethod
    def chain(
        self,
        states_BE: Tensor,
        tokens_B: Tensor,
        placement: Placement,
        cache: KVCache,
        drafted_LB: Tensor,
        programs: Programs,
    ) -> None:
        """Read the tokens, choose the most probable next ones, read those, and so on: L reads in one go.

        Args:
            placement: of the first read, one row of each slot; its limit leaves room for L of them.
            drafted_LB: takes the chosen tokens, int64; a part of one tensor that lives as long as `programs`.
        """

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


def chain_body(
    ops: Ops,
    read: Callable[[Tensor, Placement], Result],
    ids_K: Tensor | None,
    embedding_VE: Tensor,
    drafted_LB: Tensor,
) -> Body:
    """The body of a whole chain; `read` gives logits of all rows."""

    def body(both_RE: Tensor, placement: Placement) -> Result:
        for level, tokens_B in enumerate(drafted_LB):
            logits_BK, states_BE = read(both_RE, ops.shifted(placement, level) if level else placement)
            assert logits_BK is not None
            assert states_BE is not None
            both_RE, B = torch.empty_like(both_RE), len(states_BE)
            ops.next_tokens(logits_BK, ids_K, embedding_VE, tokens_B, both_RE[:B])
            ops.collect(states_BE, None, 0.0, both_RE[B:], 0)
        return Result(None, None)

    return body


def run(
    ops: Ops, programs: Programs | None, num_predicted: int, body: Body, both_RE: Tensor, placement: Placement
) -> Reading:
    """Run a head's body, or repeat it."""
    if programs is None:
        result: Result = body(both_RE, placement)
    else:
        result = ops.replay(programs, num_predicted, body, both_RE, placement)
    assert result.features_RT is not None, "a head's body gives its states"
    return Reading(result.features_RT, result.logits_RV)
