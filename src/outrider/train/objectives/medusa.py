"""Training Medusa heads beside a frozen target (Medusa-1, arXiv 2401.10774, section 2.2.1).

At position t every head reads the target's last state h_t; head k learns the token k places after the root x_{t+1}:

    loss = sum over texts of  sum_k lambda^k  mean_t loss(head_k(h_t), x_{t+1+k})          lambda = 0.8

Only tokens that the target wrote are learnt, and only behind a draft x_{t+2} .. x_{t+k} that it wrote too. Losses other
than "ce" compare with the target's distribution of x_{t+1+k}, which it gives at position t + k.

Every head starts as the output head: W and b are zero, and its projection is a copy of it, or itself, frozen.

Evaluations count the rank of the target's token in each head; the shares of the last one are saved, with the best tree.

Worked example: text x0 x1 x2 x3 x4, answer x2 .. x4. Position 1 (root x2) learns x3 by head 1 and x4 by head 2.
Position 0 (root x1) learns x2, x3 and x4; it is no anchor, for the target did not write x1.

Shapes: B rows, L positions, E hidden size, K output columns, V vocabulary, R positions scored, H heads, N ranks.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import ConfigError, check_setting, nearest
from outrider.formats.medusa import LAYOUTS, Layout, write_medusa
from outrider.formats.store import provenance
from outrider.models.medusa import LM_HEAD, TOKEN_MAP, MedusaShape
from outrider.proposers.drafting.medusa_tree import grown_paths
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.losses import LOSSES, Loss
from outrider.train.objectives.medusa_network import MedusaNetwork
from outrider.train.objectives.scoring import Depths, Scorer

__all__ = ["MedusaObjective", "MedusaObjectiveConfig"]

NUM_RANKS = 32
TREE_NODES = 63


@dataclass(frozen=True, kw_only=True)
class MedusaObjectiveConfig:
    """Settings of Medusa training."""

    num_heads: int = 4
    """Tokens guessed after each root."""
    num_layers: int = 1
    """Residual layers of each head."""
    output: Literal["own", "shared"] = "own"
    """own trains an output projection for each head; shared uses the target's, frozen, which takes far less memory."""
    decay: float = 0.8
    """Weight of each head relative to the one before."""
    loss: Loss = "ce"
    """ce learns the target's text; kl, tv and log_alpha its whole distribution."""
    draft_vocab: int = 0
    """Guess only this many tokens, those the target writes most often; 0 for all (layout vllm only)."""
    layout: Layout = "vllm"
    """Layout of checkpoints: vllm, or fasterdecoding (the authors' own, which TGI reads)."""

    def __post_init__(self) -> None:
        for name, value, high in (("num_heads", self.num_heads, 16), ("num_layers", self.num_layers, 8)):
            check_setting(self, name, 1 <= value <= high, f"between 1 and {high}")
        known: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("output", self.output, ("own", "shared")),
            ("loss", self.loss, LOSSES),
            ("layout", self.layout, LAYOUTS),
        )
        for name, choice, choices in known:
            if choice not in choices:
                raise ConfigError(f"{name}={choice} is unknown{nearest(choice, choices)}")
        check_setting(self, "decay", 0 < self.decay <= 1, "above 0 and at most 1")
        check_setting(self, "draft_vocab", self.draft_vocab >= 0, "0 (all tokens) or positive")
        if self.draft_vocab and self.layout != "vllm":
            raise ConfigError(f"draft_vocab={self.draft_vocab} has no place in layout={self.layout}; use layout=vllm")


@final
class MedusaObjective(Objective):
    """Medusa-1: heads that learn from the target's last state; the target is frozen."""

    Config = MedusaObjectiveConfig
    method = "medusa"

    def __init__(self, teacher: Teacher, config: MedusaObjectiveConfig, ids_K: Tensor | None) -> None:
        """Build the heads; `ids_K` are the target ids of a reduced vocabulary, ascending, or None."""
        spec, device = teacher.target.spec, teacher.head_VE.device
        self.teacher = teacher
        self.config = config
        self.columns = Columns(ids_K, spec.vocab_size, device)
        self.scorer = Scorer(config.loss, teacher, self.columns)
        self.head_KE = self.columns.rows(teacher.head_VE)
        self.shape = MedusaShape(
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            hidden_size=spec.hidden_size,
            vocab_size=spec.vocab_size,
            num_columns=len(self.head_KE),
            bias=True,
            output="own" if config.output == "own" else "target",
        )
        self.network = MedusaNetwork(self.shape, self.head_KE).to(device)
        self.rank_counts_HN = torch.zeros(config.num_heads, NUM_RANKS, dtype=torch.int64)
        self.num_ranked_H = torch.zeros(config.num_heads, dtype=torch.int64)
        self._counts_are_old = False

    @classmethod
    def create(cls, teacher: Teacher, config: MedusaObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        """Build the heads; nothing is drawn, so that every seed gives the same ones."""
        return cls(teacher, config, Columns.most_frequent(teacher, corpus, config.draft_vocab).ids_K)

    @classmethod
    def starts_trained(cls, config: MedusaObjectiveConfig) -> bool:
        return True  # as the target's output head

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return (self.teacher.target.spec.num_layers,)

    @property
    def num_depths(self) -> int:
        return self.config.num_heads

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        features_BLE, dtype = batch.features_BLF, next(self.network.parameters()).dtype
        assert features_BLE is not None, "the heads read the target's last state"
        depths = Depths(batch, self.scorer, [self.config.decay ** (head + 1) for head in range(self.num_depths)])
        for head, rows_BL in enumerate(depths.rows_KBL):
            predict = partial(self.network, head, shared_KE=self.head_KE)
            teach = self.scorer.teach_by(batch.shifted(features_BLE, head + 1)[rows_BL])
            scores = depths.add(predict, features_BLE[rows_BL].to(dtype), teach)
            if scores.rank_R is not None:
                self._count(head, scores.rank_R[depths.anchors_BL[rows_BL]])
        # a training step changes the heads, so that the next evaluation counts anew
        self._counts_are_old = self._counts_are_old or torch.is_grad_enabled()
        return depths.outcome()

    def _count(self, head: int, ranks_R: Tensor) -> None:
        """Add to the counts of this evaluation; what was counted before the last training step is dropped."""
        if self._counts_are_old:
            self.rank_counts_HN.zero_()
            self.num_ranked_H.zero_()
            self._counts_are_old = False
        known_R = ranks_R[ranks_R >= 0].cpu()
        self.rank_counts_HN[head] += torch.bincount(known_R, minlength=NUM_RANKS)[:NUM_RANKS]
        self.num_ranked_H[head] += len(ranks_R)

    def rank_accuracies(self) -> list[list[float]]:
        """Return `[h][n]`: how often the right token had rank n of head h in the last evaluation."""
        shares_HN = self.rank_counts_HN.double() / self.num_ranked_H.clamp(min=1)[:, None]
        return [[round(share, 6) for share in shares] for shares in shares_HN.tolist()]

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        tensors = {name: tensor.to(dtype) for name, tensor in self.network.state_dict().items()}
        shape = self.shape
        ids_K = self.columns.ids_K
        if ids_K is not None:
            tensors[TOKEN_MAP] = ids_K
        if shape.output == "target" and self.config.layout == "vllm":
            head_VE = self.teacher.target.shared_weights().head_VE.cpu()
            tensors[LM_HEAD] = head_VE if ids_K is None else head_VE[ids_K.cpu()]
            shape = replace(shape, output="one")
        measured: dict[str, Any] = {}
        if bool(self.num_ranked_H.any()):
            accuracies = self.rank_accuracies()
            tree = grown_paths(accuracies, TREE_NODES)[:TREE_NODES]
            measured = {"rank_accuracies": accuracies, "tree": [list(path) for path in tree]}
        write_medusa(directory, shape, tensors, self.config.layout, provenance(self.teacher.target, **measured))
