"""The seam for drafters that carry a state of their own from token to token: EAGLE-3, MTP, and their like.

Such a head has one or a few layers and a cache. Slot t of that cache reads the pair (state of the target at position t,
token at position t + 1) and predicts the token at position t + 2. For committed text the state comes from the target's
features (`fuse`); while drafting it is the head's own last output. After verification the drafter's own entries are
dropped and the accepted positions are read again with the target's features.

    text      x0 x1 x2 r          r is the root; the target has features of x0 x1 x2
    slots     (f0,x1) (f1,x2) (f2,r)                      -> d1, state h
              (h,d1)                                      -> d2, state h'   dropped after verification

Shapes: R rows, E hidden size of the head, F features, K columns of its output head, M rows of a slot, B slots.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.models.ops import Placement

__all__ = ["RecurrentHead"]


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
    def read(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement, cache: KVCache) -> Tensor:
        """Read pairs of state and target token id, R = B * M rows as `placement` says; output states [R, E].

        Keys and values are written to `cache`. The output is what `predict` and the next `read` take.
        """

    @abstractmethod
    def predict(self, states_RE: Tensor) -> Tensor:
        """Logits [R, K] of output states."""
