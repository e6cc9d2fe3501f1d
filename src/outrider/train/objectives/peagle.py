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

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import check_setting
from outrider.formats.eagle3 import Eagle3Checkpoint, write_native
from outrider.formats.store import provenance
from outrider.models.eagle3 import Eagle3Spec
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.columns import Columns, choose_columns
from outrider.train.objectives.eagle3 import TargetTable
from outrider.train.objectives.eagle3_network import Eagle3Network
from outrider.train.objectives.eagle3_start import begin, head_spec
from outrider.train.objectives.losses import LOSSES, Loss
from outrider.train.objectives.pard import checked_mask
from outrider.train.objectives.pard_layout import Layout, lay_out
from outrider.train.objectives.scoring import Scorer

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
        check_setting(self, "loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")
        check_setting(self, "retention", 0 < self.retention <= 1, "above 0 and at most 1")
        check_setting(self, "floor", 0 <= self.floor <= 1, "between 0 and 1")


@final
class PEagleObjective(Objective):
    """One network, and the frozen target it learns from."""

    Config = PEagleObjectiveConfig
    method = "peagle"

    def __init__(self, teacher: Teacher, config: PEagleObjectiveConfig, network: Eagle3Network, ids_K: Tensor) -> None:
        self.teacher = teacher
        self.config = config
        self.network = network
        self.ids_K = ids_K
        columns = Columns(ids_K, network.spec.layer.vocab_size, teacher.embedding_VE.device)
        self.scorer = Scorer(config.loss, teacher, columns)

    @classmethod
    def create(cls, teacher: Teacher, config: PEagleObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        target = teacher.target
        ids_K = choose_columns(target, corpus, config.draft_vocab)
        spec = head_spec(
            target,
            draft_vocab_size=len(ids_K),
            num_layers=config.num_layers,
            intermediate_size=config.intermediate_size,
            layer_ids=config.layer_ids,
            mask_id=checked_mask(config.mask_id, target, corpus),
            norm_before_residual=config.norm_before_residual,
            norm_before_fc=config.norm_before_fc,
            fc_norm=config.fc_norm,
        )
        network = Eagle3Network(spec)
        begin(network, teacher, ids_K, seed=seed, start_head=config.start_head, start_layer=config.start_layer)
        return cls(teacher, config, network.to(teacher.embedding_VE.device), ids_K)

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def spec(self) -> Eagle3Spec:
        return self.network.spec

    @property
    def feature_layers(self) -> tuple[int, ...]:
        num_layers = self.teacher.target.spec.num_layers
        return (*self.spec.feature_layers(num_layers), num_layers)

    @property
    def num_depths(self) -> int:
        return self.config.num_depths

    def states(self, batch: Batch, layout: Layout) -> Tensor:
        """Return the head's output states [B, R, E] of the laid-out rows; `network.predict` gives their logits."""
        features_BLF = self._features(batch)[..., : self.spec.features]
        return self.network.masked(batch, features_BLF, self.teacher.embedding_VE, layout)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        config = self.config
        # the root of slot a is the token a + 1, so the first draft is the token a + 2
        layout = lay_out(batch, config.num_depths, config.retention, config.floor, generator, first=2)
        rows = layout.scored()
        table = TargetTable.of(self.scorer, batch, self._features(batch)[..., self.spec.features :])
        before_N = rows.anchor_N + rows.block_N + 1
        tokens_N = batch.tokens_BL[rows.row_N, before_N + 1]
        states_NE = self.states(batch, layout)[rows.row_N, rows.place_N]
        teach = table.teach_by(table.place_BL[rows.row_N, before_N])
        scores = self.scorer.score_by(self.network.predict, states_NE, tokens_N, teach)
        return layout.outcome(batch, rows, scores, tokens_N)

    def _features(self, batch: Batch) -> Tensor:
        assert batch.features_BLF is not None, "the batch was made without features"
        return batch.features_BLF.to(self.network.norm.weight.dtype)

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        tensors = {name: tensor.detach() for name, tensor in self.network.state_dict().items()}
        about = provenance(self.teacher.target, training=asdict(self.config))
        saved = Eagle3Checkpoint(spec=self.spec, tensors=tensors, ids_K=self.ids_K.cpu(), provenance=about)
        write_native(directory, saved, dtype)
