"""The rows of PARD's training, and what each sees (arXiv 2504.18583, section 3.2).

Row (i, a) predicts token a + i + 1 from the text up to token a and i masks behind it: a is the anchor, the root of a
step, and i + 1 the depth of the draft. The rows i = 0 are the text itself. A row at position a + i sees

    the text up to its anchor      rows (0, b), b <= a, of its own text
    its own chain of masks         rows (j, a), 1 <= j <= i

Conditional drop keeps a share max(r^i, floor) of the anchors at depth i + 1, always of those kept before, so that every
kept chain is whole. A row is scored where the target wrote the tokens a + 1 .. a + i + 1.

Worked example: K = 8, r = 0.7, floor 0.2 keep 1 + 0.7 + 0.49 + 0.34 + 0.24 + 3 * 0.2 = 3.4 rows per token, not 8.

Shapes: B rows of the batch, L positions, K depths, R laid-out rows (padded), A anchors, N scored rows of all texts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from outrider.train.batch import Batch
from outrider.train.objective import Outcome
from outrider.train.objectives.scoring import Scores

__all__ = ["Layout", "ScoredRows", "lay_out"]

MULTIPLES = {"cuda": 256}
"""Layouts are padded to a multiple of this: the host plans attention kernels anew for every new shape."""


class Layout(NamedTuple):
    """The kept rows of every row of a batch, padded to the longest.

    anchors_BR  place of the anchor in the batch's row
    blocks_BR   number of masks behind the anchor: 0 is the text itself
    real_BR     False for padding, which then has anchor 0 and block 0
    chained_KBL the target wrote all tokens from depth 1 to that depth; entry 0 is depth 1
    """

    anchors_BR: Tensor
    blocks_BR: Tensor
    real_BR: Tensor
    chained_KBL: Tensor

    def visible_BRR(self, batch: Batch) -> Tensor:
        """Return the mask, bool: row by column. Padding rows see each other, so no row is empty."""
        texts_BR = torch.where(self.real_BR, batch.segments_BL.gather(1, self.anchors_BR), 0)
        row, column = (..., slice(None), None), (..., None, slice(None))
        in_text_BRR = (self.blocks_BR[column] == 0) & (self.anchors_BR[column] <= self.anchors_BR[row])
        same_anchor_BRR = self.anchors_BR[column] == self.anchors_BR[row]
        in_chain_BRR = same_anchor_BRR & (self.blocks_BR[column] <= self.blocks_BR[row])
        return (in_text_BRR | in_chain_BRR) & (texts_BR[column] == texts_BR[row])

    def scored(self) -> "ScoredRows":
        """Return the kept rows that predict a token the target wrote."""
        row_BR = torch.arange(len(self.real_BR), device=self.real_BR.device)[:, None].expand_as(self.real_BR)
        scored_BR = self.real_BR & self.chained_KBL[self.blocks_BR, row_BR, self.anchors_BR]
        row_N, place_N = scored_BR.nonzero(as_tuple=True)
        return ScoredRows(row_N, place_N, self.anchors_BR[scored_BR], self.blocks_BR[scored_BR])

    def by_anchor(self, rows: "ScoredRows", values_N: Tensor) -> Tensor:
        """Return values of scored rows as [K, A]: by depth and by anchor with a depth 1; 0 where there is no row."""
        eligible_BL = self.chained_KBL[0]
        columns_BL = (eligible_BL.flatten().cumsum(0) - 1).view_as(eligible_BL)
        values_KA = values_N.new_zeros(len(self.chained_KBL), int(eligible_BL.sum()))
        values_KA[rows.block_N, columns_BL[rows.row_N, rows.anchor_N]] = values_N
        return values_KA

    def outcome(self, batch: Batch, rows: "ScoredRows", scores: Scores, tokens_N: Tensor) -> Outcome:
        """Return what the loop reads of the scores of these rows, which should predict these tokens."""
        mean = scores.mean_by_text(batch.text_numbers()[rows.row_N, rows.anchor_N])
        return Outcome(
            mean.total,
            mean.num_texts,
            self.by_anchor(rows, scores.guess_R == tokens_N),
            self.by_anchor(rows, torch.ones_like(tokens_N, dtype=torch.bool)),
            None if scores.overlap_R is None else self.by_anchor(rows, scores.overlap_R),
        )


class ScoredRows(NamedTuple):
    """The scored rows: row of the batch, place in the layout, anchor, block."""

    row_N: Tensor
    place_N: Tensor
    anchor_N: Tensor
    block_N: Tensor


def lay_out(
    batch: Batch, num_depths: int, retention: float, floor: float, generator: torch.Generator, first: int = 1
) -> Layout:
    """Choose the rows to keep; equal generators choose the same. Depth 1 is the token `first` places ahead."""
    chained = batch.written_ahead(num_depths, first)
    noise_BL = torch.rand(batch.tokens_BL.shape, generator=generator).to(batch.tokens_BL.device)
    eligible_BL = chained[0]
    noise_BL = torch.where(eligible_BL, noise_BL, 2.0)  # above every draw: ranks behind all anchors
    rank_BL = noise_BL.flatten().argsort(stable=True).argsort(stable=True).view_as(noise_BL)
    count = eligible_BL.sum()
    kept = [batch.segments_BL > 0]
    for block in range(1, num_depths):
        share = max(retention**block, floor)
        kept.append(chained[block] & (rank_BL < (share * count).ceil()))
    return _packed(torch.stack(kept, dim=1), chained)


def _packed(kept_BKL: Tensor, chained: Tensor) -> Layout:
    length = kept_BKL.shape[2]
    kept_BN = kept_BKL.flatten(1)
    num_rows_B1 = kept_BN.sum(1, keepdim=True)
    multiple = MULTIPLES.get(kept_BN.device.type, 1)
    width = -(-int(num_rows_B1.max()) // multiple) * multiple
    # kept rows first, in their order
    order_BR = (~kept_BN).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    real_BR = torch.arange(order_BR.shape[1], device=order_BR.device) < num_rows_B1
    order_BR = torch.where(real_BR, order_BR, 0)
    return Layout(order_BR % length, order_BR // length, real_BR, chained)
