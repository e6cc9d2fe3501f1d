"""Weights in the layout that a back end reads fastest.

Example: a mixture of 128 experts of which a row takes 8 has `PackedExperts.routing == Routing(8)`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from outrider.ops.quantised import Matrix

__all__ = ["Mlp", "Packed", "PackedExperts", "Routing"]

Mlp = tuple[Matrix, Matrix, Matrix]
"""Gate, up and down of an MLP."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight in the layout its back end reads fastest; made by `Ops.pack`, read only by the back end that made it.

    layout    layout of quantised codes in memory; None for plain numbers
    parts     weights of different kinds whose outputs are side by side; `data` is then empty
    """

    in_features: int
    out_features: int
    num_bytes: int
    data: Tensor
    bias: Tensor | None
    layout: Any = None
    parts: "tuple[Packed, ...]" = ()


class Routing(NamedTuple):
    """The experts of a row, and their shares.

    num_chosen     experts of a row
    normalised     True if the shares, a softmax of all logits, are divided by their sum
    gated_input    True if the sigmoid of an expert's logit multiplies its input, instead of a share its output
    """

    num_chosen: int
    normalised: bool = True
    gated_input: bool = False


@dataclass(frozen=True, kw_only=True)
class PackedExperts:
    """A mixture of experts; made by `Ops.pack_experts`, read only by the back end that made it.

    router           its outputs are the experts' logits
    gate_up, down    the MLPs of all experts; `out_features` are those of one
    shared           gate and up, and down, of an MLP that every row goes through
    """

    router: Packed
    gate_up: Packed
    down: Packed
    routing: Routing
    shared: tuple[Packed, Packed] | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of all weights, in bytes."""
        shared = sum(packed.num_bytes for packed in self.shared or ())
        return self.router.num_bytes + self.gate_up.num_bytes + self.down.num_bytes + shared
