"""The memory of a run, estimated before anything large is allocated.

    target     its weights, as loaded
    shared     embedding and output head in fp32, which the losses need: V x E x 4 bytes, twice where they are not tied
    trained    weights, gradients and AdamW's two moments, all fp32: 16 bytes per parameter
    reading    keys and values of the texts whose features are being computed (live features only)
    features   one pass: rows x row_length x F x 2 or 4 bytes
    logits     one depth of a pass: rows x row_length x V x 4 bytes, three times (drafter, target, gradient)

Activations come on top, and the logits of further depths where a method keeps several at once.

Worked example: a head of 250 million parameters for Qwen2.5-7B (V 152064, E 3584, bf16): target 15.2 GB, shared
2 x 2.18 GB, trained 4.0 GB; a pass of 2 rows x 2048 tokens with 3 feature layers: features 0.09 GB, logits 7.5 GB.
"""

from dataclasses import dataclass, fields
from typing import Self

from outrider.errors import CapacityError
from outrider.records.files import size
from outrider.train.config import TrainConfig
from outrider.train.features import FeatureReader
from outrider.train.objective import Objective, Teacher

__all__ = ["Estimate", "num_parameters"]

BYTES_PER_PARAMETER = 16
LEAST_ROW = 16
"""Tokens of a row below which hardly a text is left."""
LOGITS_ALIVE = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of each part; see the module's docstring."""

    target: int
    shared: int
    trained: int
    reading: int
    features: int
    logits: int

    @classmethod
    def of(cls, teacher: Teacher, objective: Objective, config: TrainConfig, reader: FeatureReader, live: bool) -> Self:
        """Estimate the memory of one process."""
        spec, tokens = teacher.target.spec, config.rows * config.row_length
        tied = teacher.head_VE is teacher.embedding_VE
        reads = live and bool(objective.feature_layers)
        return cls(
            target=spec.weight_bytes,
            shared=teacher.embedding_VE.nbytes + (0 if tied else teacher.head_VE.nbytes),
            trained=num_parameters(objective) * BYTES_PER_PARAMETER,
            reading=teacher.target.plan(reader.num_slots, reader.max_tokens, tail=1).num_bytes if reads else 0,
            features=tokens * reader.width * reader.dtype.itemsize,
            logits=tokens * spec.vocab_size * 4 * LOGITS_ALIVE,
        )

    def check_fits(self, config: TrainConfig, free: int) -> None:
        """Refuse a run whose passes do not fit in the memory that is free beside what is loaded already.

        Raises:
            CapacityError: naming rows that would fit, or a row length.
        """
        tokens = config.rows * config.row_length
        fixed, of_pass = self.trained + self.reading, self.features + self.logits
        if fixed + of_pass <= free:
            return
        # activations come on top, so twice of what is known
        fitting = max(0, free - fixed) * tokens // (2 * of_pass)
        asked = (
            f"rows={config.rows} of row_length={config.row_length} need {size(fixed + of_pass)} and activations, and "
        )
        if fitting >= config.row_length:
            rows = fitting // config.row_length
            passes = -(-config.rows * config.accumulation // rows)
            steps = f"rows={rows} would fit, with accumulation={passes} for equal steps"
        elif fitting >= LEAST_ROW:
            steps = f"rows=1 with row_length={fitting} would fit"
        else:
            steps = "no rows fit beside the weights that are trained; use a smaller target or a smaller head"
        raise CapacityError(f"{asked}{size(free)} are free; {steps}")

    @property
    def total(self) -> int:
        return sum(int(getattr(self, field.name)) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {size(getattr(self, field.name))}" for field in fields(self))
        return f"about {size(self.total)} and activations ({parts})"


def num_parameters(objective: Objective) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in objective.module.parameters() if parameter.requires_grad)
