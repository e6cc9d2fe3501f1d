"""The seam behind which every trainable method lives.

An `Objective` is a trainable network and a rule: what it predicts at each depth from the target's text and features,
and what that costs. The loop (`loop.py`) knows nothing else about a method; a method knows nothing about the loop.

    depth 1 is the first drafted token: the one after the root, the last committed token.

For every anchor, a position whose root the target wrote, an objective tells for each depth whether its greedy guess is
the target's own next token. From these flags, and nothing else, the loop derives the conditional acceptance at each
depth and the tau they predict: tau = 1 + sum_k prod_{j<=k} a_j.

Add a method with one file in `objectives/` and one line in `OBJECTIVES` there.

Shapes: K depths, R anchors, E hidden size, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.target import Target
from outrider.train.batch import Batch

__all__ = ["Objective", "Outcome", "Teacher"]


@dataclass(frozen=True, eq=False)
class Teacher:
    """The frozen target as training sees it.

    target        its tokenizer, spec and files
    embedding_VE  its input embedding, fp32 on the training device, without gradient
    head_VE       its output head likewise; the same tensor where the model ties them
    """

    target: Target
    embedding_VE: Tensor
    head_VE: Tensor

    @classmethod
    def of(cls, target: Target, device: torch.device | str) -> Self:
        """Take the shared weights of a target to the training device."""
        shared = target.shared_weights()
        embedding_VE = shared.embedding_VE.to(device, torch.float32)
        tied = shared.head_VE is shared.embedding_VE
        return cls(target, embedding_VE, embedding_VE if tied else shared.head_VE.to(device, torch.float32))

    def log_probs(self, states_RE: Tensor, columns_K: Tensor | None = None, *, among_columns: bool = False) -> Tensor:
        """Return log p of states after the final norm: [R, V], or at the given columns [R, K].

        Args:
            among_columns: normalise over the columns instead of the whole vocabulary, for the cost of the columns.
        """
        with torch.no_grad():
            states_RE = states_RE.to(self.head_VE.dtype)
            if columns_K is None:
                return (states_RE @ self.head_VE.T).float().log_softmax(-1)
            if among_columns:
                return (states_RE @ self.head_VE[columns_K].T).float().log_softmax(-1)
            return (states_RE @ self.head_VE.T).float().log_softmax(-1)[:, columns_K]


class Outcome(NamedTuple):
    """The result of an objective on one batch.

    loss          a scalar with gradient: the sum over the batch's texts of the mean loss over the text's positions, so
                  that long texts weigh no more than short ones. The loop divides by the number of texts of a whole step
    num_texts     texts with at least one learnt position
    agreed_KR     bool: at depth k the greedy guess equals the token the target wrote there
    valid_KR      bool: the anchor counts at depth k: that token exists in the text and the target wrote it
    overlap_KR    sum of min(p, q) at each valid place, the acceptance of sampled drafts, or None if not computed
    """

    loss: Tensor
    num_texts: int
    agreed_KR: Tensor
    valid_KR: Tensor
    overlap_KR: Tensor | None = None


class Objective(ABC):
    """One trainable method. `module` holds exactly the trainable parameters (and no others require a gradient)."""

    Config: ClassVar[type[Any]]
    """A frozen, keyword-only dataclass of the method's own settings, defaults being the paper's."""

    method: ClassVar[str]
    """Name of the proposer that runs what was trained: `load_proposer(method, target, checkpoint=directory)`."""

    @classmethod
    @abstractmethod
    def create(cls, teacher: Teacher, config: Any, corpus: Corpus, seed: int) -> Self:
        """Build a network; equal seeds give equal weights.

        Raises:
            ConfigError: for settings that do not fit the target.
        """

    @classmethod
    def starts_trained(cls, config: Any) -> bool:
        """Return whether the weights start from those of a trained model; by default they start from random numbers."""
        return False

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The trainable network, fp32."""

    @property
    @abstractmethod
    def feature_layers(self) -> tuple[int, ...]:
        """The target's hidden states that `Batch.features_BLF` must hold, in order; see `outrider.target`."""

    @property
    @abstractmethod
    def num_depths(self) -> int:
        """K, the number of depths."""

    @abstractmethod
    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        """Return loss and agreement on a batch; all that is random is drawn from `generator`, on the CPU."""

    @abstractmethod
    def save(self, directory: Path, dtype: torch.dtype) -> None:
        """Write a checkpoint in the method's published layout, weights in `dtype`, into an existing directory."""
