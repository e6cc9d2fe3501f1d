"""The output head of a target, for drafters that share it: whole, or only the rows of their draft vocabulary.

Shapes: K columns.
"""

from torch import Tensor

from outrider.models.output_head import OutputHead
from outrider.ops.select import choose_ops
from outrider.target import Target

__all__ = ["output_head"]


def output_head(target: Target, ids_K: Tensor | None = None) -> OutputHead:
    """Return a target's output head; with `ids_K`, a packed copy of these rows alone."""
    native = target.native
    ops = choose_ops(target.spec.device, target.spec.dtype) if native is None else native.ops
    if ids_K is None:
        return OutputHead(ops, target.project, None if native is None else native.head)
    head_VE = target.shared_weights().head_VE
    packed = ops.narrow().pack(head_VE[ids_K.to(head_VE.device)])
    return OutputHead(ops, target.project, packed, ids_K.to(target.spec.device))
