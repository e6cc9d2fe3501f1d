"""DFlash-2's own parts in training: convolutions around the layers, and the candidate selector with its loss.

The convolutions begin as the identity, and the successors' codebook as zero, so that training begins with DFlash. The
selector learns to find the target's token among a slot's best columns, behind the target's own token before it:

    loss = -log softmax_c(logit_k(c) + <A[x_{k-1}] * H h_k, B[c]>)[x_k]           c one of the W best columns of slot k

Where x_k is none of them, it takes the place of the weakest, so that every slot teaches. At run time it would not be
found there, and it counts as a wrong guess. As in the speculators library, gradients reach the logits too.

Worked example: best columns 4, 9, 2 and the token 7 are scored as 4, 9, 7; the label is the third.

Parameters have the published names; inference is `outrider.models.blocks`, which shares `convolved` with this file.

Shapes: B rows, X slots of all blocks of a row, M slots of a block, R scored slots, E hidden size, V vocabulary,
K columns, W candidates, Q rank.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from outrider.models.blocks.convolution import convolved
from outrider.models.blocks.dflash import DFlashSpec
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.scoring import Predict, chunk_limits

__all__ = ["Convolved", "Found", "Noted", "Selector", "begin_as_dflash"]


@final
class Convolved(nn.Module):
    """A sublayer between two convolutions."""

    def __init__(self, spec: DFlashSpec) -> None:
        super().__init__()
        width, size = spec.decoder.hidden_size, spec.conv_kernel_size
        self.num_slots, self.num_groups = spec.block_size, width // spec.conv_group_size
        self.base_kernel = nn.Parameter(torch.empty(2, size, width))
        self.kernel_projection = nn.Linear(width, 2 * size * self.num_groups, bias=False)

    def forward(self, x_BXE: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        size = self.base_kernel.shape[1]
        delta_PM2TG = self.kernel_projection(x_BXE).view(-1, self.num_slots, 2, size, self.num_groups)

        def side(number: int, y_BXE: Tensor) -> Tensor:
            y_PME = y_BXE.reshape(-1, self.num_slots, y_BXE.shape[-1])
            return convolved(y_PME, self.base_kernel[number], delta_PM2TG[:, :, number]).view_as(y_BXE)

        return side(1, sublayer(side(0, x_BXE)))


@final
class Noted:
    """Logits of a drafter, of which the best columns are kept for the selector.

    Attributes:
        parts: the columns [R, W] of each chunk, in the order in which they were computed; the backward pass, which
            computes chunks anew, comes later.
    """

    def __init__(self, predict: Predict, top_k: int) -> None:
        self.parts: list[Tensor] = []
        self._predict = predict
        self._top_k = top_k

    def __call__(self, states_RE: Tensor) -> Tensor:
        logits_RK = self._predict(states_RE)
        self.parts.append(logits_RK.detach().topk(min(self._top_k, logits_RK.shape[1]), dim=-1).indices)
        return logits_RK


class Found(NamedTuple):
    """The selector's loss [R], with gradient, and whether it would have chosen the token, bool [R]."""

    loss_R: Tensor
    is_right_R: Tensor


@final
class Selector(nn.Module):
    """Codebooks [V, Q] of the token before and of the candidate, and the projection of the states."""

    def __init__(self, spec: DFlashSpec) -> None:
        super().__init__()
        vocab_size, rank = spec.decoder.vocab_size, spec.selector_rank
        self.predecessor_codebook = nn.Parameter(torch.empty(vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.empty(vocab_size, rank))
        self.hidden_projection = nn.Linear(spec.decoder.hidden_size, rank, bias=False)

    def score(
        self, states_RE: Tensor, best_RW: Tensor, before_R: Tensor, tokens_R: Tensor, head_KE: Tensor, columns: Columns
    ) -> Found:
        """Score states by their best columns, in chunks where there are many.

        Args:
            before_R: the token before the one that is predicted.
            head_KE: the output head's rows of the columns. Where a token has none, its loss means nothing.
        """
        step = max(1, chunk_limits(states_RE.device).logits // max(1, best_RW.shape[1] * states_RE.shape[1]))
        parts: list[Found] = []
        for start in range(0, max(1, len(states_RE)), step):
            rows = slice(start, start + step)
            arguments = (states_RE[rows], best_RW[rows], before_R[rows], tokens_R[rows], head_KE, columns)
            part: Found = checkpoint(self._score, *arguments, use_reentrant=False, preserve_rng_state=False)
            parts.append(part)
        return Found(*map(torch.cat, zip(*parts, strict=True)))

    def _score(
        self, states_RE: Tensor, best_RW: Tensor, before_R: Tensor, tokens_R: Tensor, head_KE: Tensor, columns: Columns
    ) -> Found:
        right_R1 = columns.of(tokens_R)[:, None]
        is_found_R = (best_RW == right_R1).any(1)
        weakest_R1 = torch.where(is_found_R[:, None], best_RW[:, -1:], right_R1)
        best_RW = torch.cat([best_RW[:, :-1], weakest_R1], dim=1)
        label_R = (best_RW == right_R1).int().argmax(1)
        logits_RW = (head_KE[best_RW] @ states_RE[..., None])[..., 0]
        context_RQ = self.predecessor_codebook[before_R] * self.hidden_projection(states_RE)
        edges_RW = (self.successor_codebook[columns.tokens(best_RW)] @ context_RQ[..., None])[..., 0]
        scores_RW = (logits_RW + edges_RW).to(torch.promote_types(logits_RW.dtype, torch.float32))
        is_right_R = is_found_R & (scores_RW.argmax(1) == label_R)
        return Found(cross_entropy(scores_RW, label_R, reduction="none"), is_right_R)


@torch.no_grad()
def begin_as_dflash(network: nn.Module) -> None:
    """Make convolutions the identity, and the selector silent."""
    for module in network.modules():
        if isinstance(module, Convolved):
            module.base_kernel.zero_()
            module.base_kernel[:, 0] = 1.0
            module.kernel_projection.weight.zero_()
        elif isinstance(module, Selector):
            module.successor_codebook.zero_()
