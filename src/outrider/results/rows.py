"""The result of a benchmark: the JSON document `outrider.bench/1` that ends its output.

One row per (engine, method, category, batch, temperature, cache state). Numbers are numbers, and what is not known is
null, never 0. Method `none` is plain decoding; engines of `SERVING` are compared with their own plain decoding, other
engines are external baselines; category `all` sums up. `outrider.results.derive`
computes a row from records and says how.

    {"schema": "outrider.bench/1", "target": "...", "rows": [{"method": "lookup", "tau": 2.41, "speedup": {...}, ...}]}

A reader accepts later minor versions too (`outrider.bench/1.2`) and ignores fields that it does not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from outrider.errors import RunError
from outrider.models.weight_kinds import KvDtype
from outrider.records.codec import dumps, loads
from outrider.results.statistics import Interval, Percentiles

__all__ = ["PLAIN", "SCHEMA", "SERVING", "Equality", "Lossless", "Report", "Row", "Waterfall", "from_json", "to_json"]

SCHEMA = "outrider.bench/1"
PLAIN = "none"
"""The method of plain decoding."""
SERVING = ("vllm", "llama.cpp", "endpoint")
"""Engines behind HTTP: servers that we start, and one that already runs. Each has plain decoding of its own."""


@dataclass(frozen=True, kw_only=True)
class Equality:
    """Equality of a serving engine's greedy texts with its own plain decoding's.

    num_answers   answers that were compared; those behind a difference in the same conversation had other prompts
    num_equal     answers that are equal, token for token
    equal_share   share of an answer's tokens before the first difference; mean over answers
    """

    num_answers: int
    num_equal: int
    equal_share: float


@dataclass(frozen=True, kw_only=True)
class Lossless:
    """Verdict on a row: were the outputs plain decoding's own?

    verdict        "exact"; "ties" where every difference is an explained numerical tie; "violated"; "unverified" where
                   nobody looked
    ties           answers that left plain decoding at a tie; what follows a tie cannot be compared
    violations     answers that differ for no such reason
    num_compared   tokens that were compared; `num_skipped` lie behind a tie or a violation
    where          the first violation, in words
    """

    verdict: Literal["exact", "ties", "violated", "unverified"] = "unverified"
    ties: int = 0
    violations: int = 0
    num_compared: int = 0
    num_skipped: int = 0
    where: str | None = None


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """The speedup, cost by cost: each figure takes one more cost into account.

    ideal        the acceptance alone: tau, with free drafts and a verification as cheap as a plain forward
    with_verify  and the measured cost of verifying more rows
    with_draft   and the measured cost of drafting
    with_host    and accepting, committing and the host; this is `predicted_speedup`
    measured     the measured speedup
    """

    ideal: float
    with_verify: float
    with_draft: float
    with_host: float
    measured: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell of the benchmark; times in seconds, sizes in bytes. See `outrider.results.derive` for every definition.

    state            "cold" when a proposer that learns was reset before each repeat, "warm" when it was not
    forced_length    end-of-text tokens were ignored
    scripted         the method was told what the target will say, to be right as often as asked: not a real method
    memory_bytes     by part; see `outrider.results.unit.UnitResult`
    repeat_spread    largest less smallest tokens per second of the repeats, over their median; None for one repeat
    bandwidth_share  plain decoding's weight bytes read per second over the machine's measured bandwidth
    """

    engine: str
    method: str
    category: str
    batch: int
    temperature: float
    num_prompts: int
    num_repeats: int = 1
    state: Literal["cold", "warm"] = "cold"
    forced_length: bool = False
    scripted: bool = False
    num_tokens: int | None = None
    tokens_per_s: float | None = None
    tokens_per_s_end_to_end: float | None = None
    tokens_per_s_per_request: float | None = None
    repeat_spread: float | None = None
    tau: float | None = None
    mean_acceptance_length: float | None = None
    draft_coverage: float | None = None
    draft_acceptance_rate: float | None = None
    node_efficiency: float | None = None
    acceptance_per_pos: tuple[float, ...] | None = None
    conditional_acceptance_per_pos: tuple[float, ...] | None = None
    wasted_rows: float | None = None
    speedup: Interval | None = None
    speedup_end_to_end: Interval | None = None
    total_speedup: float | None = None
    predicted_speedup: float | None = None
    break_even_tau: float | None = None
    verify_cost_ratio: float | None = None
    draft_cost_ratio: float | None = None
    overhead_ratio: float | None = None
    waterfall: Waterfall | None = None
    shares: Mapping[str, float] | None = None
    ttft_s: Percentiles | None = None
    tpot_s: Percentiles | None = None
    burst_tokens: Percentiles | None = None
    bandwidth_share: float | None = None
    memory_bytes: Mapping[str, int] | None = None
    lossless: Lossless = field(default_factory=Lossless)
    equality: Equality | None = None

    @property
    def label(self) -> str:
        """The method with what a reader must know about the row."""
        notes = {"warm": self.state == "warm", "forced length": self.forced_length, "scripted": self.scripted}
        return self.method + "".join(f" ({note})" for note, holds in notes.items() if holds)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A benchmark run.

    run       its directory
    weights   kinds of the target's weights, as "Q4_1, Q8_0"; "server" where only servers answer; None in older reports
    kv_dtype  "int8" if our engine kept keys and values in 8 bits, "auto" in `dtype`
    overlap   share of evaluation prompts that share a 13-gram with training text, by proposer checkpoint
    notes     notes for readers, such as cells that were left out and why
    closing   last lines: what was best, the command that runs it (indented), warnings, and where the report is
    """

    schema: str = SCHEMA
    run: str | None
    target: str
    dtype: str
    weights: str | None = None
    kv_dtype: KvDtype = "auto"
    device: str
    commit: str | None
    dirty: bool | None = None
    startup_s: float | None = None
    overlap: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def model(self) -> str:
        """The target with the kinds of its weights where they are quantised, and its dtypes."""
        kinds = [] if self.weights in (None, "server", self.dtype) else [self.weights]
        cached = [] if self.kv_dtype == "auto" else [f"keys and values {self.kv_dtype}"]
        return ", ".join([self.target, *kinds, self.dtype, *cached])


def to_json(report: Report) -> str:
    """Return the report as one line of JSON."""
    return dumps(report)


def from_json(text: str) -> Report:
    """Read a report that `to_json` wrote, also one of a later minor version.

    Raises:
        RunError: if it is not JSON, of another schema, or a field is missing or of the wrong type.
    """
    named = loads(_Named, text)
    if named.schema != SCHEMA and not named.schema.startswith(f"{SCHEMA}."):
        raise RunError(f"the schema is '{named.schema}' but this version reads '{SCHEMA}'; run the benchmark again")
    return loads(Report, text)


@dataclass(frozen=True, kw_only=True)
class _Named:
    schema: str
    rows: Any
