"""Our engine as a contender: it plays conversations with a proposer and records every step.

Each turn of a conversation is one request; it waits until the group's earlier turns are answered. The user's messages
are given, the answers are the model's own. Times are taken from outside, as a user would: from submission to the first
token, and to the last. So two conversations of two turns at batch 2 are four requests in two waves.

A session's bytes per token come from two engines for one request, one with twice the other's room and a text that fills
it; what does not depend on the length cancels out:

    bytes per token = (session bytes at 2 P - session bytes at P) / P

This covers caches that are planned (a draft model's keys and values) and indices that grow with the text (n-grams,
suffix trees; on text without repetition, their worst case).

Example: a draft model of 12 layers with 3 key/value heads of size 64 in bf16 needs 2 x 12 x 3 x 64 x 2 = 9,216 bytes.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Final, Literal, final

from outrider.bench.cells import Cell, Group
from outrider.bench.contender import Contender, Name
from outrider.budget import BudgetChoice
from outrider.data.dialogue import Dialogue, Rules
from outrider.data.workloads import Conversation
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposer import Proposer, Session
from outrider.results.unit import Answer, UnitResult
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.traces.record import record_trace
from outrider.traces.trace import Trace

__all__ = ["EngineContender", "session_bytes_per_token"]

WARM_UP_TOKENS = 16
LENGTH: Final = 256
STRIDE: Final = 7919  # a prime, so that text is without repetition as far as the vocabulary allows


@dataclass
class _StepLog:
    """Records of a unit, and the most bytes that the session held at the end of a step."""

    steps: list[StepRecord] = field(default_factory=list)
    prefills: list[PrefillRecord] = field(default_factory=list)
    session: Session | None = None
    most_bytes: int = 0

    def __call__(self, record: StepRecord | PrefillRecord) -> None:
        self.most_bytes = max(self.most_bytes, 0 if self.session is None else self.session.num_bytes)
        match record:
            case StepRecord():
                self.steps.append(record)
            case PrefillRecord():
                self.prefills.append(record)


@final
class EngineContender(Contender):
    """A proposer in our engine.

    Args:
        label: the method's name in this run.
        budget: as `Engine` takes it.
        warm_up: token ids to warm up with.
    """

    def __init__(
        self,
        target: Target,
        proposer: Proposer,
        label: str,
        *,
        state: Literal["cold", "warm"],
        budget: BudgetChoice = "fixed",
        verification: str,
        max_len: int,
        warm_up: Sequence[int],
        temperatures: Sequence[float],
    ) -> None:
        self.target = target
        self.proposer = proposer
        self.budget = budget
        self.verification = verification
        self.max_len = max_len
        self.warm_up = list(warm_up)
        self.temperatures = tuple(temperatures)
        self._name = Name("outrider", label, state)
        self._log = _StepLog()
        self._engine: Engine | None = None

    @property
    def name(self) -> Name:
        return self._name

    @property
    def learns(self) -> bool:
        return self.proposer.spec.learns or self.budget != "fixed"

    @cached_property
    def _bytes_per_token(self) -> int:
        return round(session_bytes_per_token(self.target, self.proposer))

    @property
    def engine(self) -> Engine:
        """The open engine."""
        assert self._engine is not None, "open it first"
        return self._engine

    def takes(self, cell: Cell, index: int) -> bool:
        return True

    def open(self, batch: int) -> None:
        self._engine = Engine(
            self.target,
            self.proposer,
            max_batch=batch,
            max_len=self.max_len,
            verification=self.verification,
            budget=self.budget,
            prefix_cache_bytes=0,  # every unit reads its prompts whole, whatever ran before it
            record=self._log,
        )
        for temperature in self.temperatures:
            self._engine.generate(
                [self.warm_up] * batch,
                SamplingParams(temperature=temperature, max_tokens=WARM_UP_TOKENS, ignore_eos=True),
            )
        self._log.session = self._engine.session
        self.reset()

    def close(self) -> None:
        self._engine = self._log.session = None
        gc.collect()

    def leave(self) -> None:
        """Release nothing: no state outlives a batch size."""

    def reset(self) -> None:
        self.engine.reset()

    def measure(self, cell: Cell, group: Group, rules: Rules) -> UnitResult:
        if self.proposer.scripted:
            _play(self.engine, group, rules)  # the answers that its script needs; not measured
        self._log.steps, self._log.prefills, self._log.most_bytes = [], [], 0
        gc.collect()
        start = perf_counter()
        answers = _play(self.engine, group, rules)
        wall_s = perf_counter() - start
        return self.name.result(
            cell,
            group,
            rules,
            answers,
            wall_s,
            steps=tuple(self._log.steps),
            prefills=tuple(self._log.prefills),
            scripted=self.proposer.scripted,
            memory_bytes={
                "proposer_weights": self.proposer.spec.num_bytes,
                "proposer_cache": self._log.most_bytes,
                "proposer_cache_per_token": self._bytes_per_token,
                "target_cache_per_token": self.engine.memory.cache.bytes_per_token,
            },
        )

    def trace(self, conversation: Conversation, category: str, rules: Rules) -> Trace | None:
        """Answer the first turn of a conversation, with nothing learnt, and return the trace.

        Returns:
            None where the prompt leaves no room for an answer.
        """
        prompt, sampling = Dialogue(conversation).ask(0, self.engine.tokenizer), rules.sampling(conversation, 0)
        if len(prompt) >= rules.max_len:
            return None
        self.reset()
        if self.proposer.scripted:
            _play(self.engine, (conversation,), rules)
        return record_trace(
            self.engine,
            prompt,
            replace(sampling, max_tokens=rules.limit(conversation), ignore_eos=rules.ignore_eos),
            method=self.name.method,
            category=category,
            prompt_id=conversation.id,
            said=conversation.turns[0],
        )


@dataclass
class _Asked:
    """A request that is being answered."""

    dialogue: Dialogue
    start: float
    answer: Answer


def _play(engine: Engine, group: Group, rules: Rules) -> list[Answer]:
    """Return all answers of a group, turn by turn; a conversation ends early where its next prompt leaves no room."""
    dialogues = [Dialogue(conversation) for conversation in group]
    answers: list[Answer] = []
    for turn in range(max(len(conversation.turns) for conversation in group)):
        asked: dict[int, _Asked] = {}
        for dialogue in [dialogue for dialogue in dialogues if turn < len(dialogue.conversation.turns)]:
            conversation, start = dialogue.conversation, perf_counter()
            prompt = dialogue.ask(turn, engine.tokenizer)
            sampling = rules.sampling(conversation, turn)
            if len(prompt) >= rules.max_len:
                dialogues.remove(dialogue)
                continue
            request = engine.add(
                prompt, replace(sampling, max_tokens=rules.limit(conversation), ignore_eos=rules.ignore_eos)
            )
            answer = Answer(
                conversation=conversation.id,
                turn=turn,
                request=request,
                seed=sampling.seed,
                num_prompt_tokens=len(prompt),
                tokens=(),
            )
            asked[request] = _Asked(dialogue, start, answer)
        answers += _answered(engine, asked)
    return answers


def _answered(engine: Engine, asked: dict[int, _Asked]) -> list[Answer]:
    for event in engine.run():
        event.raise_for_error()
        one = asked[event.request]
        waited = perf_counter() - one.start
        one.answer = replace(
            one.answer,
            tokens=one.answer.tokens + event.tokens,
            ttft_s=waited if one.answer.ttft_s is None else one.answer.ttft_s,
            latency_s=waited,
            finished=event.finished,
        )
    for one in asked.values():
        one.dialogue.answer(one.answer.tokens, engine.tokenizer)
    return [one.answer for one in asked.values()]


def session_bytes_per_token(target: Target, proposer: Proposer) -> float:
    """Return the bytes that a session of this proposer takes for each further token of one request."""
    length = min(LENGTH, target.spec.max_positions // 2)
    return max(0.0, (_most_bytes(target, proposer, 2 * length) - _most_bytes(target, proposer, length)) / length)


def _most_bytes(target: Target, proposer: Proposer, length: int) -> int:
    """Return the most that a session holds on a text of `length` tokens."""
    sizes: list[int] = []

    def record(item: StepRecord | PrefillRecord) -> None:
        sizes.append(engine.session.num_bytes)

    engine = Engine(target, proposer, max_len=length, record=record)
    prompt = [STRIDE * place % target.spec.vocab_size for place in range(length - 2)]
    engine.generate([prompt], SamplingParams(max_tokens=2, ignore_eos=True))
    return max(sizes)
