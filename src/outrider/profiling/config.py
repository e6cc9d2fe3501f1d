"""Settings of `outrider profile`; the command's options are these fields.

Example: `ProfileConfig(quick=True, batches=(7,)).grids(8192).batches` is `(7,)`; the other points are the quick ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from outrider.models.weight_kinds import Backend, KvDtype, WeightsChoice

__all__ = ["Grids", "ProfileConfig"]


class Grids(NamedTuple):
    """Points to measure.

    batches    slots
    rows       rows per slot
    contexts   committed tokens per slot
    repeats    timings of each point
    """

    batches: tuple[int, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    repeats: int


FULL = Grids((1, 2, 4, 8), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), (128, 512, 2048), 9)
QUICK = Grids((1, 4), (1, 2, 4, 8, 16), (128, 1024), 3)


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Settings of a profile. Empty tuples and None take the points of `quick` or of the full profile."""

    target: str = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""
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
    methods: tuple[str, ...] = ()
    """Methods whose drafts are measured too, such as ngram eagle3:checkpoint=DIR."""
    batches: tuple[int, ...] = ()
    """Batch sizes; by default 1 2 4 8."""
    rows: tuple[int, ...] = ()
    """Rows per slot, the root and the nodes; by default up to 32."""
    contexts: tuple[int, ...] = ()
    """Committed tokens per slot; by default up to 2048."""
    repeats: int | None = None
    """Timings of each point, of which the median counts; by default 9."""
    output: Path | None = None
    """The file; by default one in the user's cache, by machine, target's shape, dtype and threads."""
    quick: bool = False
    """Measure fewer points, 3 times each, where none are given."""

    def grids(self, max_positions: int) -> Grids:
        """Return the points; default contexts are cut to what the target can hold."""
        own = QUICK if self.quick else FULL
        rows = self.rows or tuple(count for count in own.rows if count < max_positions)
        longest = max(0, max_positions - max(rows, default=0))
        return Grids(
            self.batches or own.batches,
            rows,
            self.contexts or tuple(dict.fromkeys(min(context, longest) for context in own.contexts)),
            own.repeats if self.repeats is None else self.repeats,
        )
