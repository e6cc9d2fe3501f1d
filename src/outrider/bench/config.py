"""Settings of a benchmark run, in one record; `outrider bench` makes its options from the fields.

A run is methods x categories x batch sizes x temperatures x repeats. The settings are kept in the run's manifest, and a
run is only ever continued with the settings it was started with.

Example: `BenchConfig(methods=("a_method:num_nodes=8",), batches=(1, 4))` measures that method and plain decoding.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from outrider.bench.serving.endpoint import endpoint_of
from outrider.data.workloads import CATEGORIES
from outrider.errors import ConfigError, nearest
from outrider.models.weight_kinds import Backend, KvDtype, WeightsChoice
from outrider.results.rows import PLAIN

__all__ = ["BenchConfig"]

Engine = Literal["outrider", "vllm", "vllm-custom", "llama.cpp"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of a run. Repeated entries count once, and plain decoding always takes part: it is the baseline."""

    title: str = ""
    """One sentence about the run, printed with its results."""
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
    methods: tuple[str, ...] = (PLAIN,)
    """Methods with their settings, such as ngram:num_nodes=8,max_n=4. Plain decoding (none) always takes part."""
    budgets: tuple[Literal["fixed", "auto"], ...] = ("fixed",)
    """fixed drafts as much as the method is set to, auto as much as pays here; each method runs under each."""
    verification: str = "coupled"
    """Verification rule: coupled, rejection or block."""
    categories: tuple[str, ...] = CATEGORIES
    """Categories of our own prompts; see workloads/README.md."""
    prompts: tuple[str, ...] = ()
    """Prompts of your own, all of them: JSONL files, hub:NAME:SPLIT:FIELD, or a public set: mt-bench, humaneval, gsm8k,
    speed-bench, or with a file of it, spec-bench=FILE; our categories only where given too."""
    num_prompts: int = 12
    """Prompts of each category, from the top; rounded up to fill the last batch."""
    all_prompts: bool = False
    """Take all of `prompts`, however many; `num_prompts` is then for our own categories."""
    queue: float = 0.0
    """Conversations that wait behind each full batch for a free slot, in batches: 0.5 puts 48 before 32 slots."""
    pooled: bool = False
    """Merge all categories into one, "mixed", in turn: work for batches larger than a category."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens; longer ones are left out."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; by default each prompt's own limit."""
    batches: tuple[int, ...] = (1,)
    """Batch sizes."""
    temperatures: tuple[float, ...] = (0.0,)
    """Sampling temperatures; 0 is greedy."""
    repeats: int = 3
    """Times that each cell is measured."""
    seed: int = 0
    """Seed of all sampling."""
    warm: bool = False
    """Also measure methods that learn after they have read answers to other prompts of the category."""
    ignore_eos: bool = False
    """Ignore EOS and generate up to the limit; such rows are labelled."""
    engines: tuple[Engine, ...] = ("outrider",)
    """Engines: outrider, ours; vllm, a vLLM server for each method (make vllm builds it); vllm-custom, a vLLM server
    that drafts with our code; llama.cpp, a llama-server for each method (make llama builds it). By default outrider, or
    only the endpoints where some are given."""
    endpoints: tuple[str, ...] = ()
    """Servers that already run: URL or METHOD=URL, for example none=http://localhost:8000/v1."""
    endpoint_model: str | None = None
    """Name of the model at the endpoints, if they serve several."""
    endpoint_metrics: tuple[str, ...] = ()
    """Prometheus pages whose counters are added, where several replicas answer; by default the endpoint's own."""
    llama_kinds: tuple[str, ...] = ()
    """With llama.cpp: further kinds of its speculation, with its flags, as ngram-cache or
    ngram-mod:spec-ngram-mod-n-min=8."""
    serve: tuple[str, ...] = ()
    """Flags for the servers that we start: tensor-parallel-size=2 enforce-eager."""
    together: bool = False
    """Keep all engines and servers open at once and take turns, ours too; needs memory for all of them."""
    start_timeout: float = 900.0
    """Seconds that a server may take to become healthy."""
    stall_timeout: float = 120.0
    """Seconds that a server may be silent while it answers."""
    external: tuple[str, ...] = ()
    """Baselines beside our engine, at batch 1 and temperature 0: transformers, transformers-lookup,
    transformers-assisted:layers=0,1,2."""
    external_categories: tuple[str, ...] | None = None
    """Categories that the external baselines answer; by default all."""
    external_prompts: int = 2
    """Prompts of each category that the external baselines answer."""
    external_repeats: int = 1
    """Times that the external baselines are measured."""
    traces: int = 1
    """Prompts of each category whose answers are recorded step by step for the report, by every method, one request at
    a time and in a pass of its own behind the measurements; 0 records none."""
    optional: tuple[str, ...] = ()
    """Methods and external baselines that are left out, with a note, where they do not fit the target; and engines
    whose servers are left out where they are not built, do not start, or end."""

    def __post_init__(self) -> None:
        for name in UNIQUE:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        object.__setattr__(self, "methods", tuple(dict.fromkeys((PLAIN, *self.methods))))
        for name, low, high in LIMITS:
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else [values]:
                if value is not None and not low <= value <= high:
                    raise ConfigError(f"{name}={value} must be between {low} and {high}")
        for category in (*self.categories, *(() if self.prompts else self.external_categories or ())):
            if category not in CATEGORIES:
                raise ConfigError(f"unknown category '{category}'{nearest(category, CATEGORIES)}")
        for name in ("budgets", "batches", "temperatures"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give at least one")
        if not self.categories and not self.prompts:
            raise ConfigError("there are no prompts; give categories or a file of prompts")
        self._check_engines()

    def _check_engines(self) -> None:
        for engine in self.engines:
            if engine not in get_args(Engine):
                raise ConfigError(f"unknown engine '{engine}'{nearest(engine, get_args(Engine))}")
        if self.kv_dtype != "auto" and "outrider" not in self.engines:
            raise ConfigError(f"kv_dtype={self.kv_dtype} is for our engine, which does not run here; leave it out")
        if not self.engines and not self.endpoints:
            raise ConfigError("there is no engine; give one, or an endpoint")
        labels = Counter(endpoint_of(text).label for text in self.endpoints)
        if repeated := [label for label, times in labels.items() if times > 1]:
            raise ConfigError(f"two endpoints are called '{repeated[0]}'; write METHOD=URL to tell them apart")


UNIQUE = (
    "budgets",
    "categories",
    "prompts",
    "batches",
    "temperatures",
    "engines",
    "endpoints",
    "llama_kinds",
    "external",
    "external_categories",
)
LIMITS = (
    ("num_prompts", 1, 1_000_000),
    ("queue", 0.0, 1000.0),
    ("max_prompt_tokens", 1, 1_000_000),
    ("max_new_tokens", 1, 1_000_000),
    ("batches", 1, 4096),
    ("temperatures", 0.0, 100.0),
    ("repeats", 1, 1000),
    ("seed", 0, 2**62),
    ("start_timeout", 0.1, 1_000_000),
    ("stall_timeout", 0.1, 1_000_000),
    ("external_prompts", 1, 1_000_000),
    ("external_repeats", 1, 1000),
    ("traces", 0, 1000),
)
