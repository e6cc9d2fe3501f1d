"""What to measure: every choice of a benchmark run, in one record.

A run is methods x categories x batch sizes x temperatures x repeats. A *preset* is a TOML file with the same names, one
of ours in `recipes/` or your own; what is given beside it wins. The settings are kept in the run's manifest, and a run
is only ever continued with the settings it was started with.

    methods = ["none", "a_method:num_nodes=8"]
    batches = [1, 4]

Example: `read_preset("quick")` is the slice that `make bench` measures.
"""

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from outrider.bench.serving.endpoint import endpoint_of
from outrider.budget import BudgetChoice
from outrider.data.workloads import CATEGORIES
from outrider.env import data_directory
from outrider.errors import ConfigError, RunError, nearest
from outrider.records.codec import from_plain
from outrider.results.rows import PLAIN

__all__ = ["BenchConfig", "configured", "read_preset"]

Engine = Literal["outrider", "vllm", "vllm-custom"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of a run. Repeated entries count once, and plain decoding always takes part: it is the baseline.

    title                what this run is, in a sentence; printed with its results
    methods              `name` or `name:setting=value,setting=value`
    trust_remote_code    run Python code that comes with the target and with draft models
    budgets              each method is measured under each; plain decoding once
    categories           of our own prompts
    prompts              further prompts: JSONL files or `hub:` data sets, see `outrider.data.workloads`
    num_prompts          of each category, from the top; rounded up to fill the last batch
    all_prompts          take all of `prompts`, however many; `num_prompts` is for our own categories
    queue                conversations that wait behind each full batch for a slot to fall free, in batches: 0.5 puts
                         48 conversations before 32 slots
    pooled               all categories are one, "mixed", taken in turn: work for batches larger than a category
    max_prompt_tokens    leaves out longer prompts; None takes all that leave room for an answer
    max_new_tokens       caps the limit of each answer; None leaves the prompts' own limits
    warm                 also measure methods that learn after they have read answers to other prompts of the category
    ignore_eos           write on to the limit; such rows are labelled
    engines              "outrider", ours; "vllm", a server of it for each method; "vllm-custom", the same with our code
                         drafting in it; empty where endpoints are given
    endpoints            servers that already run, `URL` or `METHOD=URL`, up to and with /v1
    endpoint_model       the model's name there; None for the only one
    endpoint_metrics     Prometheus pages whose counters are added, one for each replica; empty for the endpoint's own
    serve                flags for the servers that we start, `name=value` or `name`
    together             those servers all run at once and take turns; otherwise one after the other
    start_timeout        seconds that a server may take to become healthy
    stall_timeout        seconds that a server may say nothing while it answers
    external             baselines beside our engine, see `outrider.bench.external`; batch 1, temperature 0
    external_categories  where those take part; None for everywhere
    external_prompts     of each category
    optional             methods and external baselines that are left out, with a note, where they do not fit the target
    """

    title: str = ""
    target: str = "smollm2-135m"
    dtype: str = "bfloat16"
    device: str | None = None
    trust_remote_code: bool = False
    methods: tuple[str, ...] = (PLAIN,)
    budgets: tuple[BudgetChoice, ...] = ("fixed",)
    verification: str = "coupled"
    categories: tuple[str, ...] = CATEGORIES
    prompts: tuple[str, ...] = ()
    num_prompts: int = 12
    all_prompts: bool = False
    queue: float = 0.0
    pooled: bool = False
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    batches: tuple[int, ...] = (1,)
    temperatures: tuple[float, ...] = (0.0,)
    repeats: int = 3
    seed: int = 0
    warm: bool = False
    ignore_eos: bool = False
    engines: tuple[Engine, ...] = ("outrider",)
    endpoints: tuple[str, ...] = ()
    endpoint_model: str | None = None
    endpoint_metrics: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()
    together: bool = False
    start_timeout: float = 900.0
    stall_timeout: float = 120.0
    external: tuple[str, ...] = ()
    external_categories: tuple[str, ...] | None = None
    external_prompts: int = 2
    external_repeats: int = 1
    optional: tuple[str, ...] = ()

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
)


def configured(preset: Mapping[str, Any], **given: Any) -> BenchConfig:
    """The preset's settings, with what was given in their place; None means not given.

    Raises:
        ConfigError: for a setting that is unknown, of the wrong type, or out of range.
    """
    known = [field.name for field in dataclasses.fields(BenchConfig)]
    chosen = dict(preset) | {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in known:
            raise ConfigError(f"a benchmark has no setting '{name}'{nearest(name, known)}")
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    plain = {name: value for name, value in plain.items() if value is not None}
    try:
        return from_plain(BenchConfig, plain)
    except RunError as error:
        raise ConfigError(str(error).partition(";")[0].replace("BenchConfig.", "the setting ")) from error


def read_preset(name: str) -> dict[str, Any]:
    """The settings in `recipes/<name>.toml`, or in a TOML file.

    Raises:
        ConfigError: if there is no such preset, or it is not TOML.
    """
    path = Path(name)
    if path.suffix != ".toml":
        known = {file.stem: file for file in sorted(data_directory("recipes").glob("*.toml"))}
        if name not in known:
            raise ConfigError(f"unknown preset '{name}'{nearest(name, known)}, or give a .toml file")
        path = known[name]
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the preset {path} cannot be read ({error}); give a TOML file") from error
