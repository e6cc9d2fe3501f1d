"""Settings of `outrider plan`; the command's options are these fields.

Example: `PlanRequest(hardware="h100", model="qwen2.5-7b", acceptance=("0.8",), methods=("a_method",))`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from outrider.errors import ConfigError
from outrider.models.weight_kinds import KvDtype, checked_kinds

__all__ = ["LARGEST_BATCH", "PlanRequest"]

LARGEST_BATCH: Final = 4096


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Costs, acceptance and settings to plan for.

    Raises:
        ConfigError: for a number out of range, or costs that are given twice or not at all.
    """

    costs: Path | None = None
    """A file that `outrider profile` wrote."""
    hardware: str | None = None
    """A machine from recipes/hardware/ (h100, h200, a100, l4, cpu-2core, cpu-2core-avx512, cpu-2core-zen4), or a TOML
    file."""
    model: str = "smollm2-135m"
    """With --hardware: the target, by sizes alone: a directory, a config.json, a hub id, smollm2-135m, qwen2.5-7b."""
    weights: str | None = None
    """With --hardware: kinds of the weights, such as Q4_K, or Q4_K,Q6_K for layers and output head; by default those of
    the model's file, or of --check's run."""
    bytes_per_weight: float | None = None
    """With --hardware: bytes per weight in place of those of its kinds."""
    kv_dtype: KvDtype = "auto"
    """With --hardware: auto counts 2 bytes for a number of a key or value, int8 one and its share of a scale."""
    drafters: str = "published"
    """With --hardware: sizes of the drafters, from recipes/drafters/ or a TOML file."""
    acceptance: tuple[str, ...] = ()
    """By depth: 0.8 or 0.8,0.6; by rank too: 0.7/0.1,0.6/0.1; with coverage: 0.8@0.4; of one method: eagle3=0.8,0.6."""
    run: Path | None = None
    """A finished `outrider bench` run: acceptance, coverage and context as measured there."""
    category: str = "all"
    """Category of that run."""
    methods: tuple[str, ...] = ()
    """By default all with costs and acceptance. With --hardware, draft_model:model=NAME names a draft model."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Batch sizes."""
    nodes: tuple[str, ...] = ("0..8",)
    """Numbers of nodes to choose from."""
    context: float | None = None
    """Committed tokens per slot; by default the run's own, or 512."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    tokens: int | None = None
    """Length of each answer in tokens; without it, the loss at an answer's end is left out."""

    def __post_init__(self) -> None:
        if (self.costs is None) == (self.hardware is None):
            raise ConfigError("give either --costs FILE, from outrider profile, or --hardware NAME")
        if not self.batches:
            raise ConfigError("batches is empty; give at least one")
        for batch in self.batches:
            if not 1 <= batch <= LARGEST_BATCH:
                raise ConfigError(f"batches={batch} must be between 1 and {LARGEST_BATCH}")
        if self.kv_dtype != "auto" and self.costs is not None:
            raise ConfigError(
                f"kv_dtype={self.kv_dtype} is for --hardware; measure it with outrider profile --kv-dtype int8"
            )
        if self.weights not in (None, "stored"):
            checked_kinds(self.weights)
        for name, low, high in (
            ("bytes_per_weight", 0.1, 8.0),
            ("context", 1.0, 1e7),
            ("temperature", 0.0, 100.0),
            ("tokens", 1, 100_000),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name}={value:g} must be between {low:g} and {high:g}")
