"""Training a draft model by distillation (Leviathan et al., arXiv 2211.17192; DistillSpec, arXiv 2310.08461).

The text is the target's own, so what the draft model must learn is the target's next-token distribution on it:

    kl   -sum_v p(v) log q(v)     the whole distribution, from the target's captured final states (the default)
    ce   -log q(x)                only the token that was written

The draft model starts from a given small model, from some of the target's layers, or fresh (`start.py`).

A draft model writes token by token and sees what it wrote, so its guess at depth k behind an anchor, given that all
before it were accepted, is its guess in the text at that place: agreement at depth k is that of depth 1, k - 1 places
further on.

Worked example: K = 3, an answer x1 x2 x3 x4 of which x1, x2, x4 are guessed. The anchor before x1 agrees at depths 1
and 2, not at 3; the anchor x2 not at depth 1, but at depth 2.

Shapes: B rows of the batch, L positions, K depths, A anchors, N scored positions, E hidden size, F features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import check_setting
from outrider.formats.hf_draft import write_draft
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.decoder import DraftNetwork
from outrider.train.objectives.losses import LOSSES, Loss
from outrider.train.objectives.scoring import Scorer
from outrider.train.objectives.start import StartConfig, begin

__all__ = ["DraftObjective", "DraftObjectiveConfig"]


@dataclass(frozen=True, kw_only=True)
class DraftObjectiveConfig(StartConfig):
    """Settings of distillation."""

    num_depths: int = 4
    """Depths at which agreement is reported; the loss is the same at every depth."""
    loss: Loss = "kl"
    """kl, tv and log_alpha learn the target's distribution, from captured states; ce learns its text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "num_depths", 1 <= self.num_depths <= 64, "between 1 and 64")
        check_setting(self, "loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")


@final
class DraftObjective(Objective):
    """A plain decoder on the target's text."""

    Config = DraftObjectiveConfig
    method: ClassVar[str] = "draft_model"

    def __init__(self, network: DraftNetwork, teacher: Teacher, config: DraftObjectiveConfig, columns: Columns) -> None:
        self.network = network
        self.teacher = teacher
        self.config = config
        self.scorer = Scorer(config.loss, teacher, columns)

    @classmethod
    def create(cls, teacher: Teacher, config: DraftObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        columns = Columns.most_frequent(teacher, corpus, config.draft_vocab)
        return cls(begin(teacher, config, None, seed), teacher, config, columns)

    @classmethod
    def starts_trained(cls, config: DraftObjectiveConfig) -> bool:
        return True

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return () if self.config.loss == "ce" else (self.teacher.target.spec.num_layers,)

    @property
    def num_depths(self) -> int:
        return self.config.num_depths

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        chained = batch.written_ahead(self.num_depths, 1)
        scored_BL = chained[0]
        features_NF = None
        if self.feature_layers:
            assert batch.features_BLF is not None, "the loop captures the feature layers that an objective names"
            features_NF = batch.features_BLF[scored_BL]
        states_BLE: Tensor = self.network(batch.tokens_BL, batch.positions_BL, batch.causal_BLL())
        tokens_N = batch.shifted(batch.tokens_BL, 1)[scored_BL]
        scores = self.scorer.score(states_BLE[scored_BL], self.network.head_VE, tokens_N, features_NF)
        mean = scores.mean_by_text(batch.text_numbers()[scored_BL])
        overlap_R = scores.overlap_R
        return Outcome(
            mean.total,
            mean.num_texts,
            further_on(scores.guess_R == tokens_N, chained),
            chained[:, scored_BL],
            None if overlap_R is None else further_on(overlap_R, chained),
        )

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        network, complete = self.network, self.config.complete
        is_slim = network.shared is not None and not complete
        spec = network.spec if is_slim else network.complete_spec
        write_draft(directory, spec, network.tensors(complete=complete), self.teacher.target, dtype, {}, {})


def further_on(values_N: Tensor, chained: Tensor) -> Tensor:
    """Return values by anchor, [K, A]: at depth k, the value k - 1 places behind the anchor; 0 off the chain."""
    num_depths, scored_BL = len(chained), chained[0]
    values_BL = values_N.new_zeros(scored_BL.shape)
    values_BL[scored_BL] = values_N
    length = scored_BL.shape[1]
    values_KBL = values_N.new_zeros(chained.shape)
    for ahead in range(min(num_depths, length)):
        values_KBL[ahead, :, : length - ahead] = values_BL[:, ahead:]
    return torch.where(chained, values_KBL, torch.zeros_like(values_KBL))[:, scored_BL]
