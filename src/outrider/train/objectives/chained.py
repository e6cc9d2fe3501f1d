"""Which anchors have a draft of which depth: the rule that drafters of whole tokens share.

A position is an anchor at depth k if the target wrote each of the k tokens behind it, and all are of its text: no step
ever drafts across the end of an answer.

Worked example: learn = [0, 0, 1, 1, 0, 1] in one text gives depth 1 at places 1, 2, 4 and depth 2 at place 1.

Shapes: K depths, B rows of the batch, L positions.
"""

import torch
from torch import Tensor

from outrider.train.batch import Batch

__all__ = ["chained_KBL"]


def chained_KBL(batch: Batch, num_depths: int) -> Tensor:
    """bool; entry k - 1 is depth k."""
    length = batch.learn_BL.shape[1]
    links = []
    for by in range(1, num_depths + 1):
        links.append(batch.shifted(batch.learn_BL, by) if by < length else torch.zeros_like(batch.learn_BL))
    return torch.stack(links).cumprod(0).bool()
