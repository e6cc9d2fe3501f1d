"""A tiny objective, texts in memory, and a run that takes a second: what the tests of the loop train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus, Data, Example, ListedTexts
from outrider.formats.store import provenance, write_checkpoint
from outrider.targets.native import NativeTarget
from outrider.testing import tiny_target
from outrider.train.batch import Batch
from outrider.train.config import TrainConfig
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.run import Setup, accelerator, train

VOCAB, PROMPT = 31, 3


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """`drop` leaves positions out at random."""

    num_depths: int = 2
    drop: float = 0.0


@final
class Linear(Objective):
    """One matrix per depth on the state after the final norm: depth k guesses the token k + 1 places ahead."""

    Config = LinearConfig
    method: ClassVar[str] = "linear"

    def __init__(self, heads: nn.ModuleList, target: NativeTarget, config: LinearConfig) -> None:
        self.heads, self.target, self.config = heads, target, config

    @classmethod
    def create(cls, teacher: Teacher, config: LinearConfig, corpus: Corpus, seed: int) -> Self:
        generator = torch.Generator().manual_seed(seed)
        heads = nn.ModuleList(nn.Linear(16, VOCAB) for _ in range(config.num_depths))
        for parameter in heads.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        return cls(heads, teacher.target, config)  # type: ignore[arg-type]

    @property
    def module(self) -> nn.Module:
        return self.heads

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return (self.target.spec.num_layers,)

    @property
    def num_depths(self) -> int:
        return self.config.num_depths

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        assert batch.features_BLF is not None
        kept_BL = torch.rand(batch.tokens_BL.shape, generator=generator) >= self.config.drop
        losses, agreed, valid = [], [], []
        for depth, head in enumerate(self.heads, start=1):
            logits_BLV = head(batch.features_BLF.float())
            wanted_BL = batch.shifted(batch.tokens_BL, depth + 1)
            valid_BL = batch.shifted(batch.learn_BL, depth + 1) & batch.shifted(batch.learn_BL, 1)
            losses.append(nn.functional.cross_entropy(logits_BLV.flatten(0, 1), wanted_BL.flatten(), reduction="none"))
            agreed.append((logits_BLV.argmax(-1) == wanted_BL).flatten())
            valid.append(valid_BL.flatten())
        loss, num_texts = per_text(batch, torch.stack(losses), torch.stack(valid) & kept_BL.flatten())
        return Outcome(loss, num_texts, torch.stack(agreed), torch.stack(valid))

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        weights = {name: weight.to(dtype) for name, weight in self.heads.state_dict().items()}
        write_checkpoint(directory, weights, provenance(self.target))


def per_text(batch: Batch, losses_KR: Tensor, valid_KR: Tensor) -> tuple[Tensor, int]:
    """The sum over texts of the mean loss of each, and how many there are."""
    total, num_texts = losses_KR.sum() * 0, 0
    rows_R = torch.arange(len(batch.tokens_BL)).repeat_interleave(batch.tokens_BL.shape[1])
    for row in range(len(batch.tokens_BL)):
        for segment in range(1, int(batch.segments_BL[row].max()) + 1):
            mine_KR = valid_KR & (rows_R == row) & (batch.segments_BL.flatten() == segment)
            if mine_KR.any():
                total, num_texts = total + losses_KR[mine_KR].mean(), num_texts + 1
    return total, num_texts


def texts(count: int, seed: int, longest: int = 20) -> ListedTexts:
    """Random texts; the target wrote all but the first three tokens."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(5, longest + 1, (), generator=generator))
        tokens_T = torch.randint(0, VOCAB - 1, (length,), generator=generator)
        found.append(Example(tokens_T, torch.arange(length) >= PROMPT))
    return ListedTexts(found)


def small(**changes: Any) -> TrainConfig:
    """Eight steps, or so, of two rows of 24 tokens."""
    fields: dict[str, Any] = {"learning_rate": 0.02, "epochs": 2, "row_length": 24, "rows": 2, "eval_every": 3}
    fields |= {"optimizer": "adamw"}
    fields |= {"real_tau_every": 0, "checkpoint_every": 2, "save_dtype": "float32"}
    return TrainConfig(**(fields | changes))


def setup(config: TrainConfig, **changes: Any) -> Setup:
    fields: dict[str, Any] = {
        "method": "linear",
        "objective": Linear,
        "settings": LinearConfig(drop=0.3),
        "target": tiny_target(dtype=torch.float32),
        "data": Data(train=texts(20, seed=1), held_out=texts(5, seed=2)),
        "config": config,
    }
    return Setup(**(fields | changes))


def play(made: Setup, directory: Path, **options: Any) -> dict[str, Any]:
    """Train on the CPU."""
    return train(made, directory, accelerator("cpu"), **options)
