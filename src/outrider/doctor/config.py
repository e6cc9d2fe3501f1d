"""Settings of `outrider doctor`; the command's options are these fields.

Example: `DoctorConfig(target="smollm2-135m", drafter="smollm2-135m/mtp")` diagnoses a shipped head.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from outrider.errors import ConfigError
from outrider.models.weight_kinds import Backend, KvDtype, WeightsChoice

__all__ = ["DoctorConfig"]


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Settings of a diagnosis.

    Raises:
        ConfigError: for a number out of range, or options that need a drafter.
    """

    target: tyro.conf.Positional[str] = ""
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m; without one, the machine is checked."""
    drafter: tyro.conf.Positional[str] = ""
    """The drafter: a directory, a hub id, a shipped head, or METHOD:checkpoint=DIR."""
    prompts: tuple[str, ...] = ()
    """Prompts of your own: JSONL files, or hub:NAME:SPLIT:FIELD; by default some of ours."""
    num_prompts: int = 12
    """Prompts that the target answers; more give a sharper picture."""
    max_new_tokens: int = 48
    """Tokens of each answer."""
    temperature: float | None = None
    """Compare with answers at this temperature too; by default with those that the target's generation_config.json
    asks for, which servers apply unless told otherwise."""
    repetition_penalty: float | None = None
    """The same for a repetition penalty; 1 is none."""
    fix: bool = False
    """Write a corrected copy of the checkpoint beside it, if one fits the texts better; nothing is overwritten."""
    output: Path | None = None
    """Directory of the corrected copy; by default the checkpoint's name with -fixed, beside it."""
    dtype: str = "bfloat16"
    """Dtype of the cache and of plain weights: bfloat16, float16, float32, float64."""
    weights: WeightsChoice = "stored"
    """Weights on the CPU: stored as the file holds them, bf16 widened, int8 or int4 quantised while loading."""
    kv_dtype: KvDtype = "auto"
    """auto keeps keys and values in dtype; int8 in 8 bits, with a scale for each head, on our decoder on the CPU."""
    backend: Backend = "auto"
    """native is our decoder, hf that of transformers, llama_cpp llama.cpp for any GGUF file; auto takes ours if it
    supports the model, else that of transformers."""
    device: str | None = None
    """cpu, cuda, ...; by default the GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""

    def __post_init__(self) -> None:
        for name, low, high in (("num_prompts", 1, 10_000), ("max_new_tokens", 8, 100_000)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name}={value} must be from {low} to {high}")
        if not self.drafter and (self.target or self.fix or self.output or self.prompts):
            target = self.target or "TARGET"
            raise ConfigError(
                f"give a drafter to diagnose beside the target; `outrider drafters {target}` lists those that fit"
            )
        if self.output is not None and not self.fix:
            raise ConfigError(f"output={self.output} is where --fix writes; add --fix")
