"""The seam for networks that draft token by token: a draft model, or a head that carries a state (`recurrent.py`).

One read takes a token and, for a recurrent head, a state for each row, writes keys and values to the drafter's own
cache, and returns output states; `predict` turns states into logits. A draft model carries no state: its features and
input states have width 0.

A `DraftStep` is the same read as operations of one back end, which may record a whole chain of them.

Shapes: R rows, N rows that are drafted from, L levels, E hidden size, F features, K columns of the output head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from outrider.cache import KVCache
from outrider.noise import ChainLaws
from outrider.ops.base import GraphBody, GraphCache, Ops, Packed, Result
from outrider.placement import Placement

__all__ = ["DraftNetwork", "DraftStep", "Reading"]


class Reading(NamedTuple):
    """Output states [R, E], which `predict` and the next `read` take, and logits [N, K] of the last N rows, if any."""

    states_RE: Tensor
    logits_NK: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DraftStep:
    """One read of a chain, as operations of one back end on one cache.

    read           output states of all rows; may change its input
    predict        logits of states
    ids_K          tokens of the columns; None if column k is token k
    embedding_VE   contiguous, or packed
    reads_states   inputs are embeddings above states, [2R, E], and the next states are the last output; else inputs
                   are embeddings alone
    """

    ops: Ops
    read: Callable[[Tensor, Placement], Tensor]
    predict: Callable[[Tensor], Tensor]
    ids_K: Tensor | None
    embedding_VE: Tensor | Packed
    reads_states: bool

    def body(self, tokens_LN: Tensor, rows_N: Tensor | None, given: int, laws: ChainLaws | None = None) -> GraphBody:
        """Make L reads into one function, which writes the chosen tokens and returns the inputs behind level `given`.

        The states of the first read at `rows_N` (None for all) are drafted from. With `laws`, tokens are drawn.
        """
        ops = self.ops

        def body(x_RE: Tensor, placement: Placement) -> Result:
            inputs: list[Tensor] = []
            for level, tokens_N in enumerate(tokens_LN):
                states_RE = self.read(x_RE, ops.shifted(placement, level) if level else placement)
                states_NE = states_RE if level or rows_N is None else ops.embed(states_RE, rows_N)
                # The inputs of the next read are written here: embeddings above, states below.
                N, E = states_NE.shape
                x_RE = states_NE.new_empty(2 * N if self.reads_states else N, E)
                here = None if laws is None else laws._replace(level=laws.level + level)
                ops.next_tokens(self.predict(states_NE), self.ids_K, self.embedding_VE, tokens_N, x_RE[:N], here)
                if self.reads_states:
                    ops.collect(states_NE, None, 0.0, x_RE[N:], 0)
                inputs.append(x_RE)
            return Result(None, inputs[given])

        return body


class DraftNetwork(ABC):
    """Packed weights that draft on a cache of their own."""

    @property
    @abstractmethod
    def ids_K(self) -> Tensor | None:
        """Target ids of the output columns; None if there is one for every token of the target."""

    @abstractmethod
    def fuse(self, features_RF: Tensor) -> Tensor:
        """Return input states [R, E] from the target's features; none [R, 0] for a draft model."""

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
            graph_cache: recorded reads of this cache, empty at first; a back end replays those of the same shape.
        """

    @abstractmethod
    def inputs(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement) -> Tensor:
        """Return the inputs of a `DraftStep`: embeddings of the tokens [R, E], above the states if it reads them."""

    @abstractmethod
    def draft_step(self, cache: KVCache) -> DraftStep | None:
        """Return a read as operations of one back end, for greedy chains; None if predicting is none."""

    @abstractmethod
    def predict(self, states_RE: Tensor) -> Tensor:
        """Return logits [R, K] of output states."""
