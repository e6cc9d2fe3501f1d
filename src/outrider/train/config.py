"""The settings of the training loop; the objective's own are in its file.

Example: `TrainConfig(learning_rate=1e-4, epochs=4, rows=8, row_length=2048)` steps after 8 x 2048 tokens.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from outrider.errors import check_setting

__all__ = ["OptimizerChoice", "Precision", "TrainConfig"]

Precision = Literal["auto", "bf16", "fp32"]
OptimizerChoice = Literal["auto", "adamw", "muon"]
RATES: dict[OptimizerChoice, float] = {"adamw": 1e-4, "muon": 1e-3}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the loop, the same for every method."""

    learning_rate: float | None = None
    """Peak learning rate after the warm-up; a cosine then falls to 0. By default 1e-3 with muon, 1e-4 with adamw."""
    epochs: int = 1
    """Number of times that every text is read."""
    max_tokens: int | None = None
    """Number of tokens after which to stop, about; replaces --epochs."""
    row_length: int = 2048
    """Tokens of a packed row; longer texts are cut to it."""
    rows: int = 4
    """Rows of one forward and backward pass."""
    accumulation: int = 1
    """Passes per optimiser step, on each process."""
    warmup_ratio: float = 0.04
    """Share of all steps in which the learning rate rises."""
    optimizer: OptimizerChoice = "auto"
    """muon for inner matrices, or adamw for all weights; auto is muon if they start from random numbers."""
    weight_decay: float = 0.0
    """Weight decay of matrices; vectors such as norm weights are never decayed."""
    beta1: float = 0.9
    """AdamW beta1: decay of the first moment."""
    beta2: float = 0.95
    """AdamW beta2: decay of the second moment."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradients; larger ones are clipped."""
    precision: Precision = "auto"
    """Precision of the matrix products: auto is bf16 on a GPU and fp32 on the CPU. Weights and optimiser are fp32."""
    seed: int = 0
    """Seed of the first weights, the order of the texts, and all that an objective draws."""
    eval_every: int = 200
    """Steps between evaluations on held-out texts; one also follows the last step."""
    eval_texts: int = 256
    """Held-out texts of an evaluation."""
    real_tau_every: int = 1000
    """Steps between decodings with the engine; one also follows the last step. 0 never decodes."""
    real_tau_prompts: int = 16
    """Held-out prompts that are decoded."""
    real_tau_tokens: int = 128
    """Longest answer to each, in tokens."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    checkpoint_minutes: float = 15.0
    """Longest time between checkpoints, in minutes."""
    keep: int = 2
    """Checkpoints to keep."""
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the weights in best/ and final/."""

    def __post_init__(self) -> None:
        for name in ("epochs", "row_length", "rows", "accumulation", "eval_every", "eval_texts", "keep"):
            check_setting(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("checkpoint_every", "real_tau_prompts", "real_tau_tokens"):
            check_setting(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "real_tau_every"):
            check_setting(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("max_grad_norm", "checkpoint_minutes"):
            check_setting(self, name, getattr(self, name) > 0, "above 0")
        check_setting(self, "learning_rate", self.learning_rate is None or self.learning_rate > 0, "above 0")
        check_setting(self, "optimizer", self.optimizer in ("auto", "adamw", "muon"), "auto, adamw or muon")
        check_setting(self, "max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        check_setting(self, "warmup_ratio", 0 <= self.warmup_ratio <= 1, "between 0 and 1")
        for name in ("beta1", "beta2"):
            check_setting(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")

    def resolved(self, device_type: str, *, starts_trained: bool) -> Self:
        """Return these settings with everything decided that follows from the device and the method.

        Args:
            starts_trained: the weights do not start from random numbers.
        """
        precision, optimizer = self.precision, self.optimizer
        if precision == "auto":
            precision = "bf16" if device_type == "cuda" else "fp32"
        if optimizer == "auto":
            optimizer = "adamw" if starts_trained else "muon"
        rate = RATES[optimizer] if self.learning_rate is None else self.learning_rate
        return replace(self, precision=precision, optimizer=optimizer, learning_rate=rate)

    @property
    def peak(self) -> float:
        """The peak learning rate of resolved settings."""
        assert self.learning_rate is not None, "settings are resolved before a run"
        return self.learning_rate
