"""The losses a drafter can learn from, per predicted position.

p is the target's distribution, q the drafter's, x the token that the target wrote.

    ce         -log q(x)                     what Medusa and PARD use
    kl         -sum_v p(v) log q(v)          the cross-entropy to the whole distribution (EAGLE-3); KL up to a constant
    tv         1 - sum_v min(p(v), q(v))     total variation; 1 minus the acceptance of sampled drafts
    log_alpha  -log sum_v min(p(v), q(v))    minus the log of that acceptance (LK losses, 2602.23881)

A drafter with a reduced vocabulary sees only some columns of p. For `kl`, p is renormalised over them; for the others
it is not, since what lies outside can never be accepted.

Worked example: p = (0.5, 0.5), q = (0.9, 0.1), x = 0: ce 0.105, kl 1.204, tv 0.4, log_alpha 0.511.

Shapes: R positions, K columns of the drafter.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["LOSSES", "Loss", "loss_R", "overlap_R"]

Loss = Literal["ce", "kl", "tv", "log_alpha"]
LOSSES: tuple[Loss, ...] = ("ce", "kl", "tv", "log_alpha")


def overlap_R(logits_RK: Tensor, teacher_RK: Tensor) -> Tensor:
    """sum_v min(p(v), q(v)): how often a sampled draft is accepted. `teacher_RK` holds log p, not renormalised."""
    return torch.minimum(logits_RK.softmax(-1), teacher_RK.exp()).sum(-1)


def loss_R(kind: Loss, logits_RK: Tensor, columns_R: Tensor, teacher_RK: Tensor | None) -> Tensor:
    """Return the loss at every position.

    Args:
        logits_RK: the drafter's logits, in fp32.
        columns_R: the drafter's column of the token that the target wrote; any value where there is none (mask it).
        teacher_RK: log p at the drafter's columns; needed by all but "ce".
    """
    log_q_RK = logits_RK.log_softmax(-1)
    if kind == "ce":
        return -log_q_RK.gather(-1, columns_R.clamp(min=0)[:, None])[:, 0]
    assert teacher_RK is not None, f"{kind} needs the target's distribution"
    if kind == "kl":
        return -(teacher_RK.softmax(-1) * log_q_RK).sum(-1)
    alpha_R = torch.minimum(log_q_RK.exp(), teacher_RK.exp()).sum(-1)
    return 1 - alpha_R if kind == "tv" else -alpha_R.clamp(min=1e-9).log()
