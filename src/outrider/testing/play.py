"""Playing a traffic pattern through the engine, with every call to the target watched.

A `Case` is a small traffic pattern: prompts that arrive at different steps, share a few slots, sample differently, stop
at different limits, and may be cancelled. `play` runs it and gives the `Outcome`; a hook may look at engine and cache
after every step.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from outrider.batch import Batch
from outrider.budget import Budget, FixedBudget
from outrider.cache import Cache
from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.processors.base import Processor, ProcessorState
from outrider.proposer import Proposer, Session
from outrider.requests.events import Event
from outrider.sampling import SamplingParams
from outrider.target import Forward, Logits, Target, TargetSession
from outrider.testing.checked import CheckedSession, ContractError

__all__ = ["Case", "Outcome", "Player", "WatchedSession", "draw_case", "only", "play", "steady_case"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A traffic pattern; entry i of each tuple belongs to request i.

    arrivals   the step before which the request is added
    cancels    the step after which it is cancelled, or None
    budget     makes one for at most so many nodes per slot
    prefill_chunk, prefix_cache_bytes   as `Engine` takes them
    forced     a fake form of each answer, or None
    """

    prompts: tuple[tuple[int, ...], ...]
    samplings: tuple[SamplingParams, ...]
    limits: tuple[int, ...]
    arrivals: tuple[int, ...]
    cancels: tuple[int | None, ...]
    max_batch: int = 2
    num_nodes: int | None = None
    verification: str = "coupled"
    budget: Callable[[int], Budget] = FixedBudget
    ignore_eos: bool = False
    prefill_chunk: int | None = None
    prefix_cache_bytes: int | None = None
    forced: tuple[Processor, ...] | None = None


@dataclass(kw_only=True)
class Outcome:
    """The result of a played case: tokens, end and drafts of every request (one per step), and the engine."""

    tokens: list[list[int]]
    finished: list[str | None]
    drafts: list[list[Tree]]
    steps: list[StepRecord]
    prefills: list[PrefillRecord]
    num_forwards: int


Hook = Callable[[Engine, "WatchedSession"], None]


@final
class WatchedSession(TargetSession):
    """Passes everything on, counts the calls, and remembers the last forward."""

    def __init__(self, inner: TargetSession, batch: Batch) -> None:
        self.inner = inner
        self.batch = batch
        self.num_forwards = 0
        self.num_prefills = 0
        self.texts: list[list[int]] = []
        self.draft = Draft.empty(0)
        self.logits_BMV: Logits = torch.zeros(0)

    @property
    def cache(self) -> Cache:
        return self.inner.cache

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        self.num_prefills += 1
        return self.inner.prefill(slots, prompts)

    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        self.num_forwards += 1
        forward = self.inner.forward(slots, roots, draft)
        self.draft, self.logits_BMV = draft, forward.logits_BMV
        self.texts = [list(running.tokens) for running in self.batch.running.values()]
        return forward

    def states(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Tensor:
        return self.inner.states(slots, roots, draft)


@final
class Player:
    """An engine whose target and proposer are watched; it may run several cases, one after another."""

    def __init__(self, target: Target, proposer: Proposer, case: Case) -> None:
        self.steps: list[StepRecord] = []
        self.prefills: list[PrefillRecord] = []
        self.engine = Engine(
            target,
            proposer,
            max_batch=case.max_batch,
            num_nodes=case.num_nodes,
            prefix_cache_bytes=case.prefix_cache_bytes,
            prefill_chunk=case.prefill_chunk,
            verification=case.verification,
            budget=case.budget(proposer.spec.max_nodes if case.num_nodes is None else case.num_nodes),
            record=self._record,
        )
        session: object = self.engine.session
        if not isinstance(session, Session):
            raise ContractError(f"{type(proposer).__name__}.open(plan) returned {session!r:.80}, which is no Session")
        self.checked = CheckedSession(session, self.engine.batch, target.spec)
        self.engine.session = self.checked
        self.watched = WatchedSession(self.engine.target, self.engine.batch)
        self.engine.target = self.watched

    def _record(self, item: StepRecord | PrefillRecord) -> None:
        if isinstance(item, StepRecord):
            self.steps.append(item)
        else:
            self.prefills.append(item)

    def run(self, case: Case, after_step: Hook = lambda engine, watched: None) -> Outcome:
        """Serve the case's requests; the engine's own settings stay those of the first case."""
        self.steps, self.prefills, self.watched.num_forwards = [], [], 0
        ids: dict[int, int] = {}
        tokens: list[list[int]] = [[] for _ in case.prompts]
        finished: list[str | None] = [None] * len(case.prompts)
        clock = 0
        while self.engine.busy or any(arrival >= clock for arrival in case.arrivals):
            for index, arrival in enumerate(case.arrivals):
                if arrival == clock:
                    ids[_add(self.engine, case, index)] = index
            self.engine.admit()
            self.engine.step()
            for event in self.engine.take():
                _take(event, ids, tokens, finished)
            after_step(self.engine, self.watched)
            for id, index in ids.items():
                if case.cancels[index] == clock and self.engine.cancel(id):
                    finished[index] = "cancelled"
            clock += 1
        places = {index: id for id, index in ids.items()}
        return Outcome(
            tokens=tokens,
            finished=finished,
            drafts=[self.checked.drafts.pop(places[index], []) for index in range(len(case.prompts))],
            steps=self.steps,
            prefills=self.prefills,
            num_forwards=self.watched.num_forwards,
        )


def play(target: Target, proposer: Proposer, case: Case, after_step: Hook = lambda engine, watched: None) -> Outcome:
    """Run a case through the engine; `after_step` may look at everything in between."""
    return Player(target, proposer, case).run(case, after_step)


def _add(engine: Engine, case: Case, index: int) -> int:
    params = replace(case.samplings[index], max_tokens=case.limits[index], ignore_eos=case.ignore_eos)
    id = engine.add(case.prompts[index], params)
    if case.forced is not None:
        engine.waiting[-1] = replace(engine.waiting[-1], processors=ProcessorState([case.forced[index]]))
    return id


def _take(event: Event, ids: dict[int, int], tokens: list[list[int]], finished: list[str | None]) -> None:
    event.raise_for_error()
    tokens[ids[event.request]] += event.tokens
    finished[ids[event.request]] = event.finished


def only(case: Case, index: int) -> Case:
    """Return the case with one of its requests alone, from the beginning to the end."""
    return replace(
        case,
        prompts=(case.prompts[index],),
        samplings=(case.samplings[index],),
        limits=(case.limits[index],),
        arrivals=(0,),
        cancels=(None,),
        max_batch=1,
    )


def steady_case(vocab_size: int = 31) -> Case:
    """Return three repeating phrases, greedy, in two slots: most methods find something to draft there."""
    phrases = ([1, 2, 3], [4, 5, 6, 7], [8, 9])
    prompts = tuple(tuple(token % (vocab_size - 1) for token in phrase * 5) for phrase in phrases)
    return Case(
        prompts=prompts,
        samplings=(SamplingParams(),) * 3,
        limits=(16,) * 3,
        arrivals=(0, 0, 2),
        cancels=(None,) * 3,
        ignore_eos=True,
    )


def draw_case(
    seed: int, vocab_size: int = 31, max_positions: int = 96, budget: Callable[[int], Budget] = FixedBudget
) -> Case:
    """Draw a case: repetitive and random prompts, mixed sampling, limits up to the context, late arrivals."""
    draw = random.Random(seed)
    count = draw.randint(1, 4)

    def prompt() -> tuple[int, ...]:
        phrase = [draw.randrange(vocab_size - 1) for _ in range(draw.randint(1, 6))]
        text = phrase * draw.randint(1, 5) + [draw.randrange(vocab_size - 1) for _ in range(draw.randint(0, 4))]
        return tuple(text)

    def sampling() -> SamplingParams:
        if draw.random() < 0.4:
            return SamplingParams()
        return SamplingParams(
            temperature=draw.choice([0.3, 0.7, 1.0]),
            top_k=draw.choice([0, 5]),
            top_p=draw.choice([1.0, 0.9]),
            min_p=draw.choice([0.0, 0.05]),
            seed=draw.randrange(2**40),
        )

    return Case(
        prompts=tuple(prompt() for _ in range(count)),
        samplings=tuple(sampling() for _ in range(count)),
        limits=tuple(draw.choice([1, 2, 5, 12, 24, 10**6 if draw.random() < 0.3 else 30]) for _ in range(count)),
        arrivals=tuple(draw.randint(0, 6) for _ in range(count)),
        cancels=tuple(draw.randint(2, 9) if draw.random() < 0.15 else None for _ in range(count)),
        max_batch=draw.randint(1, 3),
        num_nodes=draw.choice([None, 1, 3, 7]),
        budget=budget,
        ignore_eos=draw.random() < 0.5,
        prefill_chunk=draw.choice([None, 1, 5]),
    )
