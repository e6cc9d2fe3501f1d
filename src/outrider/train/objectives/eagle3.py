"""Training an EAGLE-3 head by training-time test (arXiv 2503.01840).

The network (`eagle3_network.py`) is unrolled for `num_depths` steps on the target's own text, feeding on its own
outputs. Depth k predicts the k-th token after the root; the loss is

    sum_k decay^{k-1} mean_t loss(q_{t,k}, p_{t+k})        decay 0.8, loss the cross-entropy to all of p

where p_s is the target's distribution after position s, from its final state, at the tokens that have a column in the
head. With "kl" and "ce", slots whose token has no column are left out. Only tokens that the target wrote are learnt.

Columns go to the tokens that the target wrote most often, to its special tokens and its end-of-text tokens first. The
output head starts as the target's rows of these tokens.

Worked example: text x0 x1 x2 x3 x4, answer x2..x4. Slot 1 has root x2, reads g1 and x2, and learns x3 at depth 1; at
depth 2 it reads its own output and x3, and learns x4.

Shapes: B rows, L positions, E hidden size, V vocabulary, K columns or depths, R rows that are scored, P positions with
a known target distribution.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import check_setting
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.eagle3_start import TrainedHead
from outrider.train.objectives.losses import LOSSES, Loss
from outrider.train.objectives.scoring import Depths, Scorer, Teach, chunk_limits

__all__ = ["Eagle3Objective", "Eagle3ObjectiveConfig", "TargetTable"]


@dataclass(frozen=True, kw_only=True)
class Eagle3ObjectiveConfig:
    """Settings of EAGLE-3 training."""

    draft_vocab: int = 32_000
    """Tokens that the head can draft; all of them if the target has no more."""
    num_depths: int = 7
    """Steps of the rollout: drafts deeper than this were never trained."""
    decay: float = 0.8
    """Weight of each depth relative to the one before."""
    loss: Loss = "kl"
    """kl learns the target's whole distribution, ce its text, tv and log_alpha the acceptance of sampled drafts."""
    num_layers: int = 1
    """Decoder layers of the head; SGLang runs heads of one layer only."""
    intermediate_size: int | None = None
    """Width of the head's MLP; by default the target's."""
    layer_ids: str | None = None
    """The target's layers whose input states are fused, such as "2,14,25"; by default 2, n // 2 and n - 3."""
    start_head: bool = True
    """Start the output head from the target's."""
    train_head: bool = True
    """Train the output head; frozen, it stays at its start, the target's."""
    start_layer: int | None = None
    """Start the first layer from this layer of the target (-1 is the last); by default from random numbers."""
    norm_before_residual: bool = False
    """Start the residual stream at the normalised state; SGLang ignores it, so leave it off."""
    norm_before_fc: bool = False
    """Normalise the concatenated states before they are fused."""
    fc_norm: bool = False
    """Normalise each state before they are fused."""
    norm_output: bool = False
    """Feed the head its own normalised output."""

    def __post_init__(self) -> None:
        check_setting(self, "draft_vocab", self.draft_vocab >= 1, "at least 1")
        check_setting(self, "num_depths", 1 <= self.num_depths <= 32, "between 1 and 32")
        check_setting(self, "num_layers", 1 <= self.num_layers <= 32, "between 1 and 32")
        check_setting(self, "decay", 0 < self.decay <= 1, "above 0 and at most 1")
        check_setting(self, "train_head", self.train_head or self.start_head, "true without start_head")
        check_setting(self, "loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")


class TargetTable(NamedTuple):
    """The target's distribution after every position that precedes a learnt token.

    place_BL   row of the table for each position; 0 where none is needed
    log_p_PK   log-probabilities of the tokens that have a column (`Columns.teach`), None where none is needed
    """

    place_BL: Tensor
    log_p_PK: Tensor | None

    @classmethod
    def of(cls, scorer: Scorer, batch: Batch, final_BLE: Tensor) -> Self:
        """Compute the table from the target's final states."""
        needed_BL = batch.shifted(batch.learn_BL, 1)
        # the k-th position that is needed has row k - 1 of the table
        place_BL = (needed_BL.flatten().cumsum(0) - 1).clamp(min=0).view_as(needed_BL)
        states = torch.split(final_BLE[needed_BL], chunk_limits(final_BLE.device).positions)
        log_p = [scorer.columns.teach(scorer.kind, scorer.teacher, states_RE) for states_RE in states]
        known = [log_p_PK for log_p_PK in log_p if log_p_PK is not None]
        return cls(place_BL, torch.cat(known) if known else None)

    def teach_by(self, place_R: Tensor) -> Teach:
        """Return the rows of the table at these places."""
        log_p_PK = self.log_p_PK
        return (lambda where: None) if log_p_PK is None else (lambda where: log_p_PK[place_R[where]])


@final
class Eagle3Objective(Objective):
    """One network, and the frozen target it learns from."""

    Config = Eagle3ObjectiveConfig
    method = "eagle3"

    def __init__(self, head: TrainedHead, config: Eagle3ObjectiveConfig) -> None:
        self.head = head
        self.config = config
        self.network = head.network
        self.scorer = head.scorer(config.loss)

    @classmethod
    def create(cls, teacher: Teacher, config: Eagle3ObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        return cls(TrainedHead.create(teacher, config, corpus, seed, norm_output=config.norm_output), config)

    @classmethod
    def starts_trained(cls, config: Eagle3ObjectiveConfig) -> bool:
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

    def states(self, batch: Batch) -> Iterator[Tensor]:
        """Return the head's output states [B, L, E] at each depth; `network.predict` gives their logits."""
        fused_BLF = self.head.features(batch).fused_BLF
        return self.network.steps(batch, fused_BLF, self.head.teacher.embedding_VE, self.num_depths)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        table = TargetTable.of(self.scorer, batch, self.head.features(batch).final_BLE)
        depths = Depths(batch, self.scorer, [self.config.decay**depth for depth in range(self.num_depths)])
        for depth, out_BLE in enumerate(self.states(batch)):
            rows_BL = depths.rows_KBL[depth]
            place_R = batch.shifted(table.place_BL, depth + 1)[rows_BL]
            depths.add(self.network.predict, out_BLE[rows_BL], table.teach_by(place_R))
        return depths.outcome()

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        self.head.save(directory, dtype)
