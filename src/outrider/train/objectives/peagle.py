"""Training a P-EAGLE head, which drafts several tokens in one pass (arXiv 2602.01469).

The head is EAGLE-3's (`eagle3_network.py`), the rows are PARD's (`pard_layout.py`): pairs of state and next token, and
behind some of them masked pairs. Row (i, a) reads the pairs up to slot a and i masks, and learns the token a + 2 + i.

    loss = mean over a text's scored rows of loss(q, p)        "kl" by default: the cross-entropy to all of p

Conditional drop (COD) leaves out rows of deeper masks. `mask_hidden` is learnt; the embedding of the mask token is the
target's own row of a token that no text holds, and stays as it is.

Worked example: text x0 x1 x2 x3 x4. Row (0, 1) reads (g1, x2) and learns x3; row (1, 1) is a mask behind it and learns
x4.

Shapes: B rows of the batch, L positions, R laid-out rows, N scored rows of all texts, E hidden size, F features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import check_setting
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.eagle3 import TargetTable
from outrider.train.objectives.eagle3_start import TrainedHead
from outrider.train.objectives.losses import LOSSES, Loss
from outrider.train.objectives.pard import checked_mask
from outrider.train.objectives.pard_layout import Layout, lay_out

__all__ = ["PEagleObjective", "PEagleObjectiveConfig"]


@dataclass(frozen=True, kw_only=True)
class PEagleObjectiveConfig:
    """Settings of P-EAGLE's training."""

    draft_vocab: int = 32_000
    """Tokens that the head can draft; all of them if the target has no more."""
    num_depths: int = 8
    """Tokens drafted in one pass: drafts deeper than this were never trained."""
    num_layers: int = 4
    """Decoder layers of the head."""
    loss: Loss = "kl"
    """kl learns the target's whole distribution, ce its text, tv and log_alpha the acceptance of sampled drafts."""
    retention: float = 0.7
    """Share of the anchors that is kept from one depth to the next."""
    floor: float = 0.2
    """Share that is kept at every depth."""
    mask_id: int | None = None
    """The mask token; by default one that the tokenizer does not use, or one that never occurs."""
    intermediate_size: int | None = None
    """Width of the head's MLPs; by default the target's."""
    layer_ids: str | None = None
    """The target's layers whose input states are fused, such as "2,14,25"; by default 2, n // 2 and n - 3."""
    start_head: bool = True
    """Start the output head from the target's."""
    train_head: bool = True
    """Train the output head; frozen, it stays at its start, the target's."""
    start_layer: int | None = None
    """Start the first layer from this layer of the target (-1 is the last); by default from random numbers."""
    norm_before_residual: bool = False
    """Start the residual stream at the normalised state."""
    norm_before_fc: bool = False
    """Normalise the concatenated states before they are fused."""
    fc_norm: bool = False
    """Normalise each state before they are fused."""

    def __post_init__(self) -> None:
        check_setting(self, "draft_vocab", self.draft_vocab >= 1, "at least 1")
        check_setting(self, "num_depths", 1 <= self.num_depths <= 64, "between 1 and 64")
        check_setting(self, "num_layers", 1 <= self.num_layers <= 32, "between 1 and 32")
        check_setting(self, "train_head", self.train_head or self.start_head, "true without start_head")
        check_setting(self, "loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")
        check_setting(self, "retention", 0 < self.retention <= 1, "above 0 and at most 1")
        check_setting(self, "floor", 0 <= self.floor <= 1, "between 0 and 1")


@final
class PEagleObjective(Objective):
    """One network, and the frozen target it learns from."""

    Config = PEagleObjectiveConfig
    method = "peagle"

    def __init__(self, head: TrainedHead, config: PEagleObjectiveConfig) -> None:
        self.head = head
        self.config = config
        self.network = head.network
        self.scorer = head.scorer(config.loss)

    @classmethod
    def create(cls, teacher: Teacher, config: PEagleObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        mask_id = checked_mask(config.mask_id, teacher.target, corpus)
        return cls(TrainedHead.create(teacher, config, corpus, seed, mask_id=mask_id, norm_output=False), config)

    @classmethod
    def starts_trained(cls, config: PEagleObjectiveConfig) -> bool:
        return config.start_layer is not None

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self.head.feature_layers

    @property
    def num_depths(self) -> int:
        return self.config.num_depths

    def states(self, batch: Batch, layout: Layout) -> Tensor:
        """Return the head's output states [B, R, E] of the laid-out rows; `network.predict` gives their logits."""
        fused_BLF = self.head.features(batch).fused_BLF
        return self.network.masked(batch, fused_BLF, self.head.teacher.embedding_VE, layout)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        config = self.config
        # the root of slot a is the token a + 1, so the first draft is the token a + 2
        layout = lay_out(batch, config.num_depths, config.retention, config.floor, generator, first=2)
        rows = layout.scored()
        table = TargetTable.of(self.scorer, batch, self.head.features(batch).final_BLE)
        before_N = rows.anchor_N + rows.block_N + 1
        tokens_N = batch.tokens_BL[rows.row_N, before_N + 1]
        states_NE = self.states(batch, layout)[rows.row_N, rows.place_N]
        teach = table.teach_by(table.place_BL[rows.row_N, before_N])
        scores = self.scorer.score_by(self.network.predict, states_NE, tokens_N, teach)
        return layout.outcome(batch, rows, scores, tokens_N)

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        self.head.save(directory, dtype)
