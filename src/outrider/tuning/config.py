"""Settings of `outrider tune`; the command's options are these fields.

Example: `TuneConfig(prompts=("mine.jsonl",), concurrency=(1, 8), time="5m").seconds` is 300.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from outrider.errors import ConfigError
from outrider.models.weight_kinds import Backend, KvDtype, WeightsChoice

__all__ = ["LEAST_S", "DeployEngine", "TuneConfig"]

DeployEngine = Literal["outrider", "vllm", "sglang", "llama.cpp"]

LEAST_S: Final = 30.0
"""Seconds in which answers, costs and one comparison can be measured at all."""
MOST_S: Final = 7 * 24 * 3600.0
UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([smh]?)")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Settings of a tuning run. Repeated entries count once.

    Raises:
        ConfigError: for a number out of range.
    """

    target: str = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""
    prompts: tuple[str, ...] = ()
    """Prompts of your own: JSONL files, or hub:NAME:SPLIT:FIELD; by default ours, a balanced sample."""
    concurrency: tuple[int, ...] = (1, 4, 16)
    """Requests at once, each number of which counts the same."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    drafters: tuple[str, ...] = ()
    """Heads and draft models to try beside those that ship: directories, hub ids, or METHOD:checkpoint=DIR."""
    time: str = "10m"
    """Time to spend, such as 90s, 10m or 1h."""
    engine: DeployEngine = "outrider"
    """Engine that the result is for: outrider, vllm, sglang or llama.cpp."""
    endpoints: tuple[str, ...] = ()
    """A server of the target that already runs: its address up to and with /v1. With none=URL beside it, the same
    without speculation, what its drafts gain is measured."""
    endpoint_model: str | None = None
    """Name of the model at the endpoints, if they serve several."""
    endpoint_metrics: tuple[str, ...] = ()
    """Prometheus pages whose counters are added, where several replicas answer; by default the endpoint's own."""
    output: Path | None = None
    """The recipe, a TOML file for outrider bench --preset; by default recipe.toml in the run's directory."""
    run_dir: Path | None = None
    """Directory of what is measured; by default the unfinished one with these settings, or a new one, in runs/."""
    hardware: str | None = None
    """Predict for a machine from recipes/hardware/, or a TOML file, from acceptance measured here; nothing is timed."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; by default each prompt's own limit, at most 64."""
    seed: int = 0
    """Seed of the sample of prompts and of all sampling."""
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
        for name in ("prompts", "concurrency", "drafters", "endpoints"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        object.__setattr__(self, "concurrency", tuple(sorted(self.concurrency)))
        if not self.concurrency:
            raise ConfigError("concurrency is empty; give at least one number of requests, such as 1 4 16")
        for name, low, high in (
            ("concurrency", 1, 256),
            ("temperature", 0.0, 100.0),
            ("max_new_tokens", 2, 1_000_000),
            ("seed", 0, 2**62),
        ):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and not low <= value <= high:
                    raise ConfigError(f"{name}={value} must be between {low} and {high}")
        if self.endpoints and self.kv_dtype != "auto":
            raise ConfigError(f"kv_dtype={self.kv_dtype} is for our engine, and a server answers; leave it out")
        if self.endpoints and self.hardware:
            raise ConfigError("a server shows its own costs; leave out --hardware or --endpoint")
        _ = self.seconds

    @property
    def seconds(self) -> float:
        """Time to spend in seconds.

        Raises:
            ConfigError: if it is no time, or too short or too long.
        """
        found = DURATION.fullmatch(self.time.strip())
        if found is None:
            raise ConfigError(f"time={self.time!r} is no time; write it as 90s, 10m or 1h")
        seconds = float(found[1]) * UNITS[found[2]]
        if seconds < LEAST_S:
            raise ConfigError(
                f"time={self.time} is less than the {LEAST_S:.0f}s in which answers, costs and one comparison can be "
                "measured; give --time 2m or more"
            )
        if seconds > MOST_S:
            raise ConfigError(f"time={self.time} is longer than a week; give less")
        return seconds
