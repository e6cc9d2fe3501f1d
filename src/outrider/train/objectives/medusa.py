"""Training Medusa heads beside a frozen target (Medusa-1, arXiv 2401.10774, section 2.2.1).

At position t every head reads the target's last state h_t; head k learns the token k places after the root x_{t+1}:

    loss = sum over texts of  sum_k lambda^k  mean_t loss(head_k(h_t), x_{t+1+k})          lambda = 0.8

Only tokens that the target wrote are learnt, and only behind a draft x_{t+2} .. x_{t+k} that it wrote too, so a head
learns from no place at which it would not be asked. Losses other than "ce" compare with the target's distribution of
x_{t+1+k}, which it gives at position t + k.

Every head starts as the output head: W and b are zero, and its own projection is a copy of it (or it shares it,
frozen). A reduced vocabulary keeps the tokens that the target wrote most often. Logits exist for a slice of positions
of one head at a time; where they are many, the backward pass makes them again.

Without gradients, calls also count at which rank of each head the target's token stood. The shares of the last such
calls are saved, and the tree that is best for them.

Worked example: text x0 x1 x2 x3 x4, answer x2 .. x4. Position 0 (root x1, the prompt's last) learns x2 by head 1, x3 by
head 2 and x4 by head 3; position 1 (root x2) learns x3 and x4. Position 0 is no anchor: the target did not write x1.

Shapes: B rows, L positions, E hidden size, K output columns, V vocabulary, P positions scored, H heads, N ranks.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outrider.data.texts import Corpus
from outrider.errors import ConfigError, nearest
from outrider.formats.medusa import LAYOUTS, Layout, write_medusa
from outrider.formats.store import provenance
from outrider.models.medusa import LM_HEAD, TOKEN_MAP, MedusaShape
from outrider.proposers.drafting.medusa_tree import grown_paths
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.losses import LOSSES, Loss, loss_R, overlap_R
from outrider.train.objectives.medusa_network import MedusaNetwork
from outrider.train.objectives.scoring import chunk_limits, mean_by_text

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
    """How checkpoints are written: vllm, or fasterdecoding (the authors' own, which TGI reads)."""

    def __post_init__(self) -> None:
        for name, value, high in (("num_heads", self.num_heads, 16), ("num_layers", self.num_layers, 8)):
            if not 1 <= value <= high:
                raise ConfigError(f"{name}={value} must be between 1 and {high}")
        known: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("output", self.output, ("own", "shared")),
            ("loss", self.loss, LOSSES),
            ("layout", self.layout, LAYOUTS),
        )
        for name, choice, choices in known:
            if choice not in choices:
                raise ConfigError(f"{name}={choice} is unknown{nearest(choice, choices)}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay={self.decay} must be above 0 and at most 1")
        if self.draft_vocab < 0:
            raise ConfigError(f"draft_vocab={self.draft_vocab} must be 0 (all tokens) or positive")
        if self.draft_vocab and self.layout != "vllm":
            raise ConfigError(f"draft_vocab={self.draft_vocab} has no place in layout={self.layout}; use layout=vllm")


class _Places(NamedTuple):
    """Where one head is asked: row and position in the batch, and the tokens it should guess."""

    rows_P: Tensor
    positions_P: Tensor
    tokens_P: Tensor

    @property
    def where(self) -> tuple[Tensor, Tensor]:
        return self.rows_P, self.positions_P


class _Scores(NamedTuple):
    """At each place: loss and best guess (a target id); without gradients also rank of the right token and overlap."""

    loss_P: Tensor
    guess_P: Tensor
    rank_P: Tensor | None
    overlap_P: Tensor | None


@final
class MedusaObjective(Objective):
    """Medusa-1: heads that learn from the target's last state, the target itself frozen."""

    Config = MedusaObjectiveConfig
    method = "medusa"

    def __init__(self, teacher: Teacher, config: MedusaObjectiveConfig, ids_K: Tensor | None) -> None:
        """`ids_K` are the target ids of a reduced vocabulary, ascending."""
        spec, device = teacher.target.spec, teacher.head_VE.device
        self.teacher = teacher
        self.config = config
        self.columns = Columns(ids_K, spec.vocab_size, device)
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
        self.max_logits = chunk_limits(device).logits
        self.rank_counts_HN = torch.zeros(config.num_heads, NUM_RANKS, dtype=torch.int64)
        self.num_ranked_H = torch.zeros(config.num_heads, dtype=torch.int64)
        self._counts_are_old = False

    @classmethod
    def create(cls, teacher: Teacher, config: MedusaObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        """Nothing is drawn: every seed gives the same heads."""
        return cls(teacher, config, Columns.most_frequent(teacher, corpus, config.draft_vocab).ids_K)

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
        features_BLE = batch.features_BLF
        assert features_BLE is not None, "the heads read the target's last state"
        anchors_BL = _ahead(batch, batch.learn_BL, 1) & _ahead(batch, batch.learn_BL, 2)
        texts_BL = _text_numbers(batch)
        places = self._places(batch)
        num_logits = self.shape.num_columns * sum(len(place.tokens_P) for place in places)
        recompute = torch.is_grad_enabled() and num_logits > self.max_logits
        total = torch.zeros((), device=anchors_BL.device)
        agreed, valid, overlap = [], [], []
        for head, place in enumerate(places):
            scores = self._score(head, place, features_BLE, recompute)
            learnt_P = self.columns.learnable(self.config.loss, place.tokens_P)
            means = mean_by_text(scores.loss_P[learnt_P], texts_BL[place.where][learnt_P])
            total = total + self.config.decay ** (head + 1) * means.total
            agreed.append(_at(anchors_BL, place, scores.guess_P == place.tokens_P))
            valid.append(_at(anchors_BL, place, torch.ones_like(learnt_P)))
            if scores.overlap_P is not None:
                overlap.append(_at(anchors_BL, place, scores.overlap_P))
            if scores.rank_P is not None:
                self._count(head, scores.rank_P[anchors_BL[place.where]])
        self._counts_are_old = self._counts_are_old or torch.is_grad_enabled()
        num_texts = int((torch.bincount(texts_BL[places[0].where]) > 0).sum())
        return Outcome(
            total, num_texts, torch.stack(agreed), torch.stack(valid), torch.stack(overlap) if overlap else None
        )

    def _places(self, batch: Batch) -> list[_Places]:
        """For each head, the positions behind which the target wrote the whole draft."""
        wanted_BL = batch.segments_BL > 0
        places = []
        for head in range(self.config.num_heads):
            wanted_BL = wanted_BL & _ahead(batch, batch.learn_BL, head + 2)
            rows_P, positions_P = wanted_BL.nonzero(as_tuple=True)
            places.append(_Places(rows_P, positions_P, batch.tokens_BL[rows_P, positions_P + head + 2]))
        return places

    def _score(self, head: int, place: _Places, features_BLE: Tensor, recompute: bool) -> _Scores:
        """Score one head, at most `max_logits` logits at a time."""
        chunk = max(1, self.max_logits // self.shape.num_columns)
        parts: list[_Scores] = []
        for start in range(0, max(1, len(place.tokens_P)), chunk):
            some = _Places(*(part[start : start + chunk] for part in place))
            if recompute:
                arguments: tuple[Any, ...] = (self._score_chunk, head, some, features_BLE)
                parts.append(checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._score_chunk(head, some, features_BLE))
        ranks = [part.rank_P for part in parts if part.rank_P is not None]
        overlaps = [part.overlap_P for part in parts if part.overlap_P is not None]
        return _Scores(
            torch.cat([part.loss_P for part in parts]),
            torch.cat([part.guess_P for part in parts]),
            torch.cat(ranks) if ranks else None,
            torch.cat(overlaps) if overlaps else None,
        )

    def _score_chunk(self, head: int, place: _Places, features_BLE: Tensor) -> _Scores:
        dtype = next(self.network.parameters()).dtype
        logits_PK = self.network(head, features_BLE[place.where].to(dtype), self.head_KE)
        logits_PK = logits_PK.to(torch.promote_types(logits_PK.dtype, torch.float32))
        columns_P = self.columns.of(place.tokens_P)
        written_PE = features_BLE[place.rows_P, place.positions_P + head + 1]
        teacher_PK = self.columns.teach(self.config.loss, self.teacher, written_PE)
        losses_P = loss_R(self.config.loss, logits_PK, columns_P, teacher_PK)
        guess_P = self.columns.tokens(logits_PK.detach().argmax(-1))
        if torch.is_grad_enabled():
            return _Scores(losses_P, guess_P, None, None)
        right_P1 = logits_PK.gather(1, columns_P.clamp(min=0)[:, None])
        ranks_P = torch.where(columns_P >= 0, (logits_PK > right_P1).sum(-1), NUM_RANKS)
        assert teacher_PK is not None
        return _Scores(losses_P, guess_P, ranks_P, overlap_R(logits_PK, teacher_PK))

    def _count(self, head: int, ranks_P: Tensor) -> None:
        """Add to the counts of this evaluation; what was counted before the last training step is dropped."""
        if self._counts_are_old:
            self.rank_counts_HN.zero_()
            self.num_ranked_H.zero_()
            self._counts_are_old = False
        self.rank_counts_HN[head] += torch.bincount(ranks_P.cpu(), minlength=NUM_RANKS)[:NUM_RANKS]
        self.num_ranked_H[head] += len(ranks_P)

    def rank_accuracies(self) -> list[list[float]]:
        """`[h][n]`: how often the right token had rank n of head h, where calls without gradients saw it last."""
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


def _ahead(batch: Batch, x_BL: Tensor, by: int) -> Tensor:
    """`Batch.shifted`, for rows shorter than the shift too."""
    return batch.shifted(x_BL, min(by, x_BL.shape[1]))


def _text_numbers(batch: Batch) -> Tensor:
    """int64 [B, L]: a number for every text of the batch."""
    segments_BL = batch.segments_BL
    rows_B = torch.arange(len(segments_BL), device=segments_BL.device)
    return segments_BL + (1 + segments_BL.max()) * rows_B[:, None]


def _at(anchors_BL: Tensor, place: _Places, values_P: Tensor) -> Tensor:
    """The values at the anchors [R]; zero where this head is not asked."""
    values_BL = torch.zeros(anchors_BL.shape, dtype=values_P.dtype, device=values_P.device)
    values_BL[place.where] = values_P
    return values_BL[anchors_BL]
