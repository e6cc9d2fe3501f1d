"""Settings of `outrider quality`; the command's options are these fields.

Example: `QualityConfig(weights=("int4",), candidates=("model-Q2_K.gguf",))` has two candidates; the reference of both
is `smollm2-135m`, widened.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CacheKind", "Kind", "QualityConfig"]

Kind = Literal["stored", "int8", "int4"]
CacheKind = Literal["int8"]


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Settings of a measurement of quality. The reference is the target with all weights widened to `dtype`."""

    target: str = "smollm2-135m"
    """The reference: a directory, a GGUF file, a hub id, or smollm2-135m."""
    weights: tuple[Kind, ...] = ("stored",)
    """Kinds of the target's weights to measure: stored, int8, int4; give the option without values for none."""
    kv_dtype: tuple[CacheKind, ...] = ()
    """Dtypes of keys and values to measure, with the reference's weights: int8."""
    candidates: tuple[str, ...] = ()
    """Other models of the same vocabulary to measure, each as it is stored: GGUF files, directories, hub ids."""
    prompts: tuple[Path, ...] = ()
    """Texts of your own: JSONL files of prompts; by default the benchmark's, from all categories in turn."""
    num_tokens: int = 4096
    """Predicted tokens of prompts; half as many are predicted in answers that the reference writes to them."""
    dtype: str = "bfloat16"
    """Dtype of the reference's weights and of all caches: bfloat16, float16, float32, float64."""
    device: str | None = None
    """cpu, cuda, ...; by default the GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the models; read it first."""
