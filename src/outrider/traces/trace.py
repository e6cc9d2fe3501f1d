"""A trace: who wrote each token of an answer, and the draft, probabilities and times of each step, as data.

    {"step": 7, "tokens": [{"id": 5, "text": " cat", "by": "draft", "prob": 0.9, "top": [...]}, ...],
     "draft": {"ids": [5, 6], "texts": [" cat", " ran"], "parents": [-1, 0], "accepted": [0], "probs": [0.9, 0.1]},
     "ms": {"propose": 0.2, "verify": 9.1, "accept": 0.1, "commit": 0.0, "host": 0.1, "total": 9.5}}

`by` is "draft" for an accepted token, "forced" for one that the form of the answer left no choice about, "bonus" for
the target's own after a draft, "plain" for that of a step without a draft. The texts of `tokens` joined are the text of
the step: one that waits for a stop string comes later. Probabilities are the target's at the request's temperature (1
if greedy).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, final

from outrider.errors import RunError
from outrider.records.codec import from_plain, parsed, to_plain
from outrider.requests.detokenize import Vocabulary
from outrider.requests.events import Event
from outrider.traces.watch import WatchedStep

__all__ = ["SCHEMA", "Candidate", "DraftTrace", "StepTrace", "Texts", "TokenTrace", "Trace", "TraceKey", "step_trace"]

SCHEMA: Final = "outrider.trace/1"
MOST_TEXTS = 8192
TraceKey = tuple[str, str, str, float]
"""Method, category, id of the prompt and temperature: unique in a run."""
Writer = Literal["draft", "forced", "bonus", "plain"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A token that the target might have written."""

    text: str
    prob: float


@dataclass(frozen=True, kw_only=True)
class TokenTrace:
    """An emitted token.

    by    its writer, as the module's docstring says
    prob  the target's probability; None where unknown
    top   the target's most probable tokens in its place
    """

    id: int
    text: str
    by: Writer
    prob: float | None = None
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DraftTrace:
    """A draft: node i has the token `ids[i]` under node `parents[i]`, -1 for the root; `accepted` are node indices.

    part  the part of the method that drafted, such as "look-up"; empty for a method of one part
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    parents: tuple[int, ...]
    accepted: tuple[int, ...]
    probs: tuple[float | None, ...]
    part: str = ""


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """One step; `ms` are the parts of the whole batch's step in milliseconds, and their total."""

    step: int
    tokens: tuple[TokenTrace, ...]
    draft: DraftTrace
    ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """An answer, step by step.

    method       label of the method, such as "ngram"; "none" is plain decoding
    category     category of the prompt in a benchmark
    prompt_id    id of the prompt there
    prompt       the last message of the user, shortened
    finished     reason for the end, as in `outrider.requests.events`; None if only the beginning was traced
    """

    schema: str = SCHEMA
    target: str
    method: str
    category: str = ""
    prompt_id: str = ""
    prompt: str = ""
    temperature: float = 0.0
    num_prompt_tokens: int = 0
    finished: str | None = None
    steps: tuple[StepTrace, ...] = ()

    @property
    def text(self) -> str:
        return "".join(token.text for step in self.steps for token in step.tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token.id for step in self.steps for token in step.tokens)

    @property
    def total_ms(self) -> float:
        """Time of all steps."""
        return sum(step.ms.get("total", 0.0) for step in self.steps)

    @property
    def key(self) -> TraceKey:
        return (self.method, self.category, self.prompt_id, self.temperature)

    def to_json(self) -> str:
        """Return one line, without the newline."""
        return json.dumps(to_plain(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Trace":
        """Return the trace of a line.

        Raises:
            RunError: if the line is damaged, cut off, or of another version.
        """
        plain = parsed(line, "a trace")
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            raise RunError(f"a trace cannot be read: it is not of the version {SCHEMA}")
        trace = from_plain(cls, plain)
        if flaw := next(filter(None, map(_flaw_of, trace.steps)), None):
            raise RunError(f"a trace cannot be read: step {flaw}")
        return trace


@final
class Texts:
    """The texts of single tokens."""

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = None if tokenizer is None else Vocabulary(tokenizer)

        @lru_cache(MOST_TEXTS)
        def text(token: int) -> str:
            return "" if vocabulary is None else vocabulary.decode([token], False) or ""

        self.of = text


def step_trace(watched: WatchedStep, event: Event, texts: Texts) -> StepTrace:
    """Return a watched step as data."""
    tree = watched.tree
    last: Writer = "bonus" if tree.tokens else "plain"
    kept: Writer = "forced" if watched.is_forced else "draft"
    shown = _spread([piece.text for piece in event.pieces], len(event.tokens))
    return StepTrace(
        step=watched.step,
        tokens=tuple(
            TokenTrace(
                id=token,
                text=text,
                by=kept if index < event.num_accepted else last,
                prob=found.prob,
                top=tuple(Candidate(text=texts.of(id), prob=prob) for id, prob in found.top),
            )
            for index, (token, text, found) in enumerate(zip(event.tokens, shown, watched.chosen, strict=True))
        ),
        draft=DraftTrace(
            ids=tuple(tree.tokens),
            texts=tuple(texts.of(token) for token in tree.tokens),
            parents=tuple(tree.parents),
            accepted=watched.accepted,
            probs=watched.probs,
            part="" if watched.is_forced or not tree.tokens else watched.part,
        ),
        ms={name: round(1000 * seconds, 3) for name, seconds in watched.seconds.items()},
    )


def _spread(pieces: list[str], count: int) -> list[str]:
    """Return one text per token; the last one gets what is left.

    >>> _spread(["a", "b", "c"], 2)
    ['a', 'bc']
    """
    if count == 0:
        return []
    texts = [*pieces[: count - 1], *[""] * (count - 1 - len(pieces))]
    return [*texts, "".join(pieces[count - 1 :])]


def _flaw_of(step: StepTrace) -> str | None:
    """Return what cannot be true of a step; None if nothing."""
    draft, count = step.draft, len(step.draft.ids)
    if not len(draft.texts) == len(draft.parents) == len(draft.probs) == count:
        return f"{step.step} has a draft whose fields differ in length"
    if not all(-1 <= parent < node for node, parent in enumerate(draft.parents)):
        return f"{step.step} has a node above its parent"
    if not all(0 <= node < count for node in draft.accepted):
        return f"{step.step} accepts a node that it does not have"
    if min((*step.ms.values(), *(prob or 0.0 for prob in draft.probs)), default=0.0) < 0:
        return f"{step.step} has a time or a probability below 0"
    return None
