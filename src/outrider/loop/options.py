"""Settings of a command that decodes: which target, with which method, on which device.

Example: `EngineOptions(method="ngram", device="cpu")` is the embedded target with prompt lookup.
"""

from dataclasses import dataclass
from typing import Literal

from outrider.models.weight_kinds import Backend, KvDtype, WeightsChoice

__all__ = ["EngineOptions"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Settings of an engine; those of a request are the command's own."""

    target: str = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""
    method: str = "auto"
    """The drafting method and its settings, such as suffix or ngram:num_nodes=8; by default auto, which picks what tune
    found for this target, else a shipped head, else suffix decoding, and says so."""
    budget: Literal["fixed", "auto"] | None = None
    """fixed drafts as much as the method is set to; auto as much as pays here, which may be nothing; by default fixed,
    or what was picked with the method."""
    verification: str = "coupled"
    """Verification rule: coupled, rejection or block."""
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
