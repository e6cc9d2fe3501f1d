"""The unit of measurement: one group of prompts, decoded once by one method.

A benchmark is a list of units. A unit runs a group of conversations (as many as the batch has slots, or more) through
one engine, start to end, and keeps everything that was seen: the tokens of every answer, every step and prefill record,
when tokens arrived. Units of different methods with the same `pair_key` did the same work side by side and are
compared; a run that was interrupted goes on with the units whose `unit` is not on disk yet.

    unit                 "lookup/editing/b1/t0/r2/editing-03"     (made by `unit_id`)
    pair_key             ("editing", ("editing-03",), 1, 0.0, 2)

A unit is one line of JSON. Every figure of the report is derived from units by `outrider.results.derive`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from outrider.errors import RunError
from outrider.metrics import PrefillRecord, StepRecord
from outrider.records.codec import from_plain, parsed, to_plain
from outrider.results.counters import Counters
from outrider.results.equality.verdict import Verdict
from outrider.results.steps import event_of, prefill_of, step_of

__all__ = ["Answer", "PairKey", "UnitResult", "unit_id"]


class PairKey(NamedTuple):
    """Fields that must be equal for two units to be compared."""

    category: str
    conversations: tuple[str, ...]
    batch: int
    temperature: float
    repeat: int


def unit_id(
    method: str,
    category: str,
    batch: int,
    temperature: float,
    repeat: int,
    conversations: Sequence[str],
    *,
    engine: str = "outrider",
    state: str = "cold",
) -> str:
    """Return a name that is unique in a run and readable; a group is named by its first and last conversation.

    >>> unit_id("lookup", "editing", 1, 0.0, 2, ["editing-03"])
    'lookup/editing/b1/t0/r2/editing-03'
    """
    group = conversations[0] if len(conversations) == 1 else f"{conversations[0]}..{conversations[-1]}"
    head = ("" if engine == "outrider" else f"{engine}:") + method + ("" if state == "cold" else f"+{state}")
    return f"{head}/{category}/b{batch}/t{temperature:g}/r{repeat}/{group}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: the model's reply to one turn of one conversation.

    request            its id in the unit's records
    seed               seed of its sampling
    num_prompt_tokens  the conversation up to the answer, in tokens
    tokens             emitted token ids
    finished           reason that it ended, as in `outrider.batch.FinishReason`; None if unknown
    ttft_s             from submission to its first token; None if unknown
    latency_s          from submission to its last token; None if unknown
    first_burst        tokens that came with the first one; used where there are no step records
    bursts             tokens by arrival, where a server streamed them
    start_s            from the start of the unit to submission; None if unknown
    verdict            against plain decoding's answer; None where nobody compared
    """

    conversation: str
    turn: int
    request: int
    seed: int
    num_prompt_tokens: int
    tokens: tuple[int, ...]
    finished: str | None = None
    ttft_s: float | None = None
    latency_s: float | None = None
    first_burst: int = 1
    bursts: tuple[int, ...] = ()
    start_s: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """Result of one unit.

    unit           see `unit_id`
    engine         "outrider", an external baseline such as "transformers", or one of `outrider.results.rows.SERVING`
    method         "none" is plain decoding
    batch          slots of the engine
    repeat         counts from 0
    conversations  ids of the group, in order
    answers        answers of all turns
    steps          records, in order; empty for an external engine
    counters       growth of a serving engine's counters over the unit; None where it has none, or others used it too
    wall_s         the whole unit: prefill, decoding, tokenising; loading and warm-up excluded
    state          "cold" if a proposer that learns was reset before, "warm" if not
    forced_length  end-of-text tokens were ignored
    scripted       acceptance by a script: the method was told what the target will say
    memory_bytes   "proposer_weights"; "proposer_cache", the most that its session held; "proposer_cache_per_token" and
                   "target_cache_per_token", by how much they grow with the text; "graph_pools"; where known
    """

    unit: str
    engine: str = "outrider"
    method: str
    category: str
    batch: int
    temperature: float
    repeat: int
    conversations: tuple[str, ...]
    answers: tuple[Answer, ...]
    steps: tuple[StepRecord, ...] = ()
    prefills: tuple[PrefillRecord, ...] = ()
    counters: Counters | None = None
    wall_s: float
    state: Literal["cold", "warm"] = "cold"
    forced_length: bool = False
    scripted: bool = False
    memory_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def pair_key(self) -> PairKey:
        return PairKey(self.category, self.conversations, self.batch, self.temperature, self.repeat)

    @property
    def num_tokens(self) -> int:
        """Emitted tokens of all answers."""
        return sum(len(answer.tokens) for answer in self.answers)

    @cached_property
    def first_bursts(self) -> Mapping[int, int]:
        """Tokens that came with the first one, by request."""
        first = {answer.request: answer.first_burst for answer in self.answers}
        for step in reversed(self.steps):
            first |= {slot.request: slot.num_emitted for slot in step.slots}
        return first

    @property
    def num_decode_tokens(self) -> int:
        """Tokens that `decode_s` paid for: with records all of them; otherwise the first ones came with the prefill."""
        return (
            self.num_tokens
            if self.steps
            else sum(max(0, len(answer.tokens) - answer.first_burst) for answer in self.answers)
        )

    @property
    def decode_s(self) -> float | None:
        """Seconds without prefill: all steps; without records, while any answer was behind its first tokens.

        Without records and without the answers' starts, this is known at batch 1 only, where answers follow each other.
        """
        if self.steps:
            return sum(step.total_s for step in self.steps)
        spans = [
            _Span((answer.start_s or 0.0) + answer.ttft_s, (answer.start_s or 0.0) + answer.latency_s)
            for answer in self.answers
            if answer.latency_s is not None and answer.ttft_s is not None
        ]
        if len(spans) < len(self.answers):
            return None
        if self.batch == 1:
            return sum(span.end - span.start for span in spans)
        return _covered_s(spans) if all(answer.start_s is not None for answer in self.answers) else None

    def to_json(self) -> str:
        """Return one line, without the newline; seconds of records to the nanosecond."""
        plain = to_plain({item.name: getattr(self, item.name) for item in fields(self) if item.name not in _RECORDS})
        plain |= {name: [event_of(record) for record in getattr(self, name)] for name in _RECORDS}
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "UnitResult":
        """Return the unit of a line.

        Raises:
            RunError: if the line is damaged, cut off, or of another version.
        """
        plain = parsed(line, "a unit")
        if not isinstance(plain, dict):
            raise RunError("a unit cannot be read: it is not a JSON object")
        steps, prefills = (_events(plain, name) for name in _RECORDS)
        records = {"steps": tuple(map(step_of, steps)), "prefills": tuple(map(prefill_of, prefills))}
        return replace(from_plain(cls, plain), **records)  # type: ignore[arg-type]


def _events(plain: dict[str, Any], name: str) -> list[Any]:
    events = plain.pop(name, None)
    if not isinstance(events, list):
        raise RunError(f"a unit cannot be read: its '{name}' are not a list")
    return events


class _Span(NamedTuple):
    start: float
    end: float


def _covered_s(spans: Sequence[_Span]) -> float:
    """Return the seconds that lie in at least one span."""
    covered, reached = 0.0, 0.0
    for span in sorted(spans):
        covered += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return covered


_RECORDS = ("steps", "prefills")
