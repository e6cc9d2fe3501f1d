"""The output head of a drafter that borrows its target's: whole, or the rows of the tokens that it drafts.

For a small target the output head is the most expensive part of a draft: SmolLM2-135M's is 57 MB of its 269 MB, and a
chain of four tokens reads it four times. Text repeats few of the tokens. FR-Spec (arXiv 2502.14856) ranks them by how
often they occur and drafts only the most frequent K; the others are left to the target.

    logits_k = W[ids_k] . y          for k < K columns, ids ascending; without ids, W is the target's own projection

Worked example: 8,192 of 49,152 rows are 9.4 MB instead of 57 MB.

Shapes: R rows, E hidden size, K columns, V vocabulary.
"""

from collections.abc import Callable
from typing import final

from torch import Tensor

from outrider.ops.base import Ops, Packed

__all__ = ["OutputHead"]


@final
class OutputHead:
    """A function from states after the final norm to logits; `ids_K` are the tokens of its columns.

    Args:
        project: the whole head as a function of states, where there is no packed one.
        packed: the weights for `ops`; None if only `project` can compute logits.
    """

    def __init__(
        self, ops: Ops, project: Callable[[Tensor], Tensor], packed: Packed | None, ids_K: Tensor | None = None
    ) -> None:
        self.ops = ops
        self.ids_K = ids_K
        self.packed = packed
        self._project = project

    @property
    def num_bytes(self) -> int:
        """Memory beyond the model's own, in bytes."""
        return 0 if self.packed is None or self.ids_K is None else self.packed.num_bytes

    def __call__(self, states_RE: Tensor) -> Tensor:
        """Return logits [R, K], or [R, V] with the whole head."""
        if self.packed is None:
            return self._project(states_RE)
        return self.ops.norm_project(states_RE.to(self.ops.activation_dtype).contiguous(), None, 0.0, self.packed)
