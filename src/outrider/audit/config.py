"""Settings of `outrider audit`; the command's options are these fields.

Example: `AuditConfig(methods=("ngram",), temperatures=(0.0,), thorough=True)`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from outrider.errors import ConfigError, nearest
from outrider.models.weight_kinds import Backend, KvDtype, WeightsChoice

__all__ = ["PROCESSORS", "AuditConfig", "Processing"]

Processing = Literal["none", "penalties", "biases", "structured"]
PROCESSORS: Final[tuple[Processing, ...]] = ("none", "penalties", "biases", "structured")
RULES: Final = ("coupled", "rejection", "block")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Settings of an audit. Repeated entries count once.

    Raises:
        ConfigError: for a value out of range.
    """

    target: str = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""
    methods: tuple[str, ...] = ("auto",)
    """Methods to audit, each with its settings, such as suffix or ngram:num_nodes=8, installed ones included."""
    verification: tuple[str, ...] = ("coupled",)
    """Acceptance rules: coupled, rejection, block."""
    batches: tuple[int, ...] = (1, 4)
    """Requests at once; plain decoding always decodes one."""
    temperatures: tuple[float, ...] = (0.0, 0.7)
    """Sampling temperatures; 0 is greedy."""
    processors: tuple[Processing, ...] = PROCESSORS
    """Changes of the logits: none, penalties, biases, structured (a form, where llguidance is installed)."""
    budget: Literal["fixed", "auto"] = "fixed"
    """fixed drafts as much as the method is set to; auto as much as pays here."""
    prompts: tuple[Path, ...] = ()
    """Prompts of your own: JSONL files; by default the benchmark's, from all categories in turn."""
    num_prompts: int | None = None
    """Prompts of each comparison; by default 4, with --thorough 16."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; by default 48, with --thorough 128."""
    law_tokens: int | None = None
    """Tokens of each test of a law; by default 2,048, with --thorough 8,192."""
    thorough: bool = False
    """Compare every processor at every batch size, with more and longer answers."""
    seed: int = 0
    """Seed of all sampling."""
    alpha: float = 0.001
    """Probability that an audit of a lossless method fails by chance, for rules whose law is tested by samples."""
    time_limit: float = 600.0
    """Seconds after which one comparison counts as hung."""
    endpoint: str | None = None
    """Audit a server in place of methods, by its greedy texts: its address up to and with /v1."""
    baseline: str | None = None
    """A server of the same weights without speculation, to compare with; by default our plain decoding of --target."""
    endpoint_model: str | None = None
    """Name of the model at --endpoint; needed only where it serves several."""
    baseline_model: str | None = None
    """Name of the model at --baseline; needed only where it serves several."""
    tie_margin: float = 0.05
    """Nats between two tokens within which a server's other text is a tie, where log-probabilities are told."""
    output: Path | None = None
    """File for the whole result as JSON."""
    page: Path | None = None
    """File for the whole result as an HTML page for people."""
    backend: Backend = "auto"
    """native is our decoder, hf that of transformers, llama_cpp llama.cpp for any GGUF file; auto takes ours if it
    supports the model, else that of transformers."""
    dtype: str = "bfloat16"
    """Dtype of the cache and of plain weights: bfloat16, float16, float32, float64."""
    weights: WeightsChoice = "stored"
    """Weights on the CPU: stored as the file holds them, bf16 widened, int8 or int4 quantised while loading."""
    kv_dtype: KvDtype = "auto"
    """auto keeps keys and values in dtype; int8 in 8 bits, with a scale for each head, on our decoder on the CPU."""
    device: str | None = None
    """cpu, cuda, ...; by default the GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""

    def __post_init__(self) -> None:
        for name in ("methods", "verification", "batches", "temperatures", "processors", "prompts"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            object.__setattr__(self, name, values)
            if not values and name != "prompts":
                raise ConfigError(f"{name} is empty; give at least one value")
        if self.endpoint is None and (stray := self.baseline or self.endpoint_model or self.baseline_model):
            raise ConfigError(f"{stray} is given for a server that is not named; give --endpoint URL")
        if self.page is not None and self.page == self.output:
            raise ConfigError(f"page={self.page} is the file of output too; give them different names")
        for rule in self.verification:
            if rule not in RULES:
                raise ConfigError(f"unknown verification '{rule}'{nearest(rule, RULES)}")
        for processing in self.processors:
            if processing not in PROCESSORS:
                raise ConfigError(f"unknown processor '{processing}'{nearest(processing, PROCESSORS)}")
        for name, low, high in (
            ("batches", 1, 256),
            ("num_prompts", 1, 10_000),
            ("max_new_tokens", 2, 100_000),
            ("law_tokens", 64, 10_000_000),
            ("seed", 0, 2**62),
            ("alpha", 1e-9, 0.1),
            ("time_limit", 1.0, 1e6),
            ("tie_margin", 0.0, 10.0),
        ):
            found = getattr(self, name)
            for value in found if isinstance(found, tuple) else (found,):
                if value is not None and not low <= value <= high:
                    raise ConfigError(f"{name}={value} must be between {low} and {high}")
        for value in self.temperatures:
            if not (value == 0 or 0.01 <= value <= 100):
                raise ConfigError(f"temperatures={value} must be 0 (greedy) or between 0.01 and 100")

    def check_places(self) -> None:
        """
        Raises:
            ConfigError: if a result could not be written where it is wanted.
        """
        for name, path in (("output", self.output), ("page", self.page)):
            if path is not None and not path.parent.is_dir():
                raise ConfigError(f"{name}={path} lies in no directory; make {path.parent} first")
            if path is not None and path.is_dir():
                raise ConfigError(f"{name}={path} is a directory; give a file's name")

    @property
    def size(self) -> tuple[int, int]:
        """Prompts of a comparison, and tokens of an answer."""
        prompts, tokens = (16, 128) if self.thorough else (4, 48)
        return self.num_prompts or prompts, self.max_new_tokens or tokens

    @property
    def num_law_tokens(self) -> int:
        """Tokens of each test of a law."""
        return self.law_tokens or (8192 if self.thorough else 2048)
