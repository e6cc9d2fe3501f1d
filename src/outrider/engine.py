"""Speculative decoding, in one loop.

Plain decoding asks the target for one token per forward pass. A forward pass is limited by reading the weights, so a
few more rows in the same pass cost little. A *proposer* therefore guesses the next tokens; the target reads the last
committed token (the *root*) together with all guesses in one pass; the verifier keeps the guesses that the target would
have written itself, and the target's own next token after them (the *bonus*). Every step yields at least one token, and
the text is the target's own. `Engine.step` below is the whole algorithm; plain decoding is the same step with an empty
draft.

    root: "The"    draft: "cat sat down"    target after each row: "cat", "sat", "on", ...
    accepted: "cat sat", bonus: "on"        one forward, three tokens

Around it: requests wait until a slot is free, take it while others go on (continuous admission), and leave it at an
end-of-text token, a stop string or a limit. The cache holds every committed token of a slot except the root.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

from outrider.adaptive import BudgetChoice, budget_named
from outrider.batch import Batch, Event, FinishReason, Request
from outrider.budget import Budget
from outrider.clock import Clock
from outrider.errors import ConfigError, RequestError
from outrider.memory import MemoryPlan, check_fits
from outrider.metrics import PrefillRecord, StepRecord
from outrider.noise import Stream
from outrider.proposer import Proposer, SessionPlan
from outrider.requests import Prompt, as_prompts, settings_of
from outrider.sampling import Sampling
from outrider.target import Target
from outrider.text import Piece, TextStream, encode
from outrider.values import shown
from outrider.verify import Verification, verifier

__all__ = ["Completion", "Engine"]

Recorder = Callable[[StepRecord | PrefillRecord], None]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished answer: its token ids, its text in pieces (with what came from a draft), and why it ended."""

    request: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    pieces: tuple[Piece, ...]
    finished: FinishReason

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@final
class Engine:
    """Decodes requests in a batch of slots, with a target and a proposer.

    Args:
        max_batch: slots; more requests wait.
        max_len: the longest text in tokens, prompt included; at most (and by default) the target's own limit.
        num_nodes: nodes that each slot may draft per step; by default what the proposer asks for.
        verification: "coupled", "rejection" or "block"; see `outrider.verify`.
        budget: "fixed" drafts `num_nodes` in every step; "auto" at most that many, as many as pay, which may be none
            (`outrider.adaptive`); or a budget of your own.
        record: called with every step and prefill record.

    Raises:
        CapacityError: if cache and weights do not fit in memory; the message says what would.
        ConfigError: for an unknown verification or budget, a limit out of range, or an argument of a wrong type.
    """

    def __init__(
        self,
        target: Target,
        proposer: Proposer,
        *,
        max_batch: int = 1,
        max_len: int | None = None,
        num_nodes: int | None = None,
        verification: str = "coupled",
        budget: BudgetChoice | Budget = "fixed",
        record: Recorder = lambda record: None,
    ) -> None:
        _check_types(target, proposer, record)
        spec = target.spec
        self.spec = spec
        self.tokenizer = target.tokenizer
        self.record = record
        self.memory = MemoryPlan.of(target, proposer, max_batch, max_len, num_nodes)
        check_fits(self.memory, spec.device)
        self.verifier = verifier(verification)
        self.hosting = target.hosting
        self.target = target.open(self.memory.cache, proposer.taps)
        self.session = proposer.open(
            SessionPlan(
                max_slots=self.memory.cache.num_slots,
                max_positions=self.memory.cache.capacity,
                noise=Stream.TARGET if verification == "coupled" else Stream.DRAFT,
                device=spec.device,
            )
        )
        self.budget = budget if isinstance(budget, Budget) else budget_named(budget, target, self.memory.num_nodes)
        self.batch = Batch(self.memory.cache.num_slots, self.memory.cache.capacity, spec.eos_ids)
        self.waiting: deque[Request] = deque()
        self.num_requests = 0
        self.num_steps = 0

    def step(self) -> list[Event]:
        """Give every running request at least one token."""
        clock, batch = Clock(self.spec.device), self.batch
        slots, samplings = batch.slots, batch.samplings
        rooms = self.budget.rooms(batch.asks(self.session), len(self.waiting))
        draft = self.budget.cut(self.session.propose(slots, rooms))  # may be wrong, never unsafe
        clock.lap("propose")
        forward = self.target.forward(slots, batch.roots, draft)  # the only target call in the loop
        clock.lap("verify")
        accepted = self.verifier(
            draft, Verification(forward.logits_BMV, self.target.cache.lengths_of(slots), samplings)
        )
        clock.lap("accept")
        self.target.cache.commit(slots, [verdict.path for verdict in accepted])  # it holds every token but the root
        clock.lap("commit")
        steps, events = batch.advance(draft, accepted)  # emit, and stop where a text ends
        clock.lap("host")
        commits = batch.commits(accepted, events)
        self.session.observe(commits, forward.features_BMF)
        clock.lap("propose")
        self.budget.observe(commits, clock.seconds())
        self._release([event.request for event in events if event.finished])
        clock.lap("host")
        self.num_steps += 1
        self.record(StepRecord(self.num_steps, draft.num_rows, draft.is_chain, tuple(steps), **clock.seconds()))
        return events

    def admit(self) -> None:
        """Let waiting requests take the free slots: read their prompts, all in one go."""
        free = self.batch.free_slots()
        requests = [self.waiting.popleft() for _ in range(min(len(free), len(self.waiting)))]
        if not requests:
            return
        slots = free[: len(requests)]
        clock = Clock(self.spec.device)
        features = self.target.prefill(slots, [request.prompt[:-1] for request in requests])
        clock.lap("verify")
        for slot, request, features_TF in zip(slots, requests, features, strict=True):
            self.batch.place(request, slot, TextStream(self.tokenizer, request.stop))
            self.session.admit(slot, request.prompt, request.sampling, features_TF)
        if self.budget.reads_ahead:
            self.session.catch_up(slots)
        clock.lap("propose")
        seconds = clock.seconds()
        num_tokens = sum(len(request.prompt) - 1 for request in requests)
        ids = tuple(request.id for request in requests)
        self.record(PrefillRecord(ids, num_tokens, seconds["verify_s"], seconds["propose_s"]))

    @property
    def busy(self) -> bool:
        """Whether a request is running or waiting."""
        return bool(self.batch.running or self.waiting)

    def add(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> int:
        """Queue a request and give its id.

        Args:
            prompt: text (one user turn of a chat), a list of messages, or token ids.
            stop: a string, or several, that end the answer; they are cut from its text.

        Raises:
            RequestError: for an empty or too long prompt, a token out of range, a limit below 1, or a wrong type.
        """
        settings = settings_of(max_new_tokens, sampling, stop, ignore_eos)
        tokens = tuple(encode(self.tokenizer, prompt))
        self._check(tokens, settings.stop)
        self.num_requests += 1
        self.waiting.append(
            Request(
                id=self.num_requests,
                prompt=tokens,
                max_new_tokens=settings.max_new_tokens,
                sampling=settings.sampling,
                stop=settings.stop,
                ignore_eos=settings.ignore_eos,
            )
        )
        return self.num_requests

    def run(self) -> Iterator[Event]:
        """Work until no request is left. Requests may be added and cancelled between events."""
        while self.busy:
            with self.hosting():
                self.admit()
                events = self.step()
            yield from events

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Iterator[Event]:
        """Events of these prompts (or of one) as they come; an event's `request` counts the prompts from 0.

        An iterator that is dropped before its end cancels what is left.
        """
        ids: dict[int, int] = {}
        try:
            for index, prompt in enumerate(as_prompts(prompts)):
                id = self.add(
                    prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, ignore_eos=ignore_eos
                )
                ids[id] = index
            for event in self.run():
                if event.request in ids:
                    index = ids[event.request] if event.finished is None else ids.pop(event.request)
                    yield Event(
                        request=index,
                        tokens=event.tokens,
                        num_accepted=event.num_accepted,
                        pieces=event.pieces,
                        finished=event.finished,
                    )
                if not ids:
                    return
        finally:
            for id in ids:
                self.cancel(id)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> list[Completion]:
        """The finished answers, in the order of the prompts; of one, if one is given."""
        encoded = [encode(self.tokenizer, prompt) for prompt in as_prompts(prompts)]
        events: list[list[Event]] = [[] for _ in encoded]
        for event in self.stream(
            encoded, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, ignore_eos=ignore_eos
        ):
            events[event.request].append(event)
        return [
            Completion(
                request=index,
                prompt=tuple(prompt),
                tokens=tuple(token for event in events[index] for token in event.tokens),
                pieces=tuple(piece for event in events[index] for piece in event.pieces),
                finished=next(event.finished for event in events[index] if event.finished),
            )
            for index, prompt in enumerate(encoded)
        ]

    def cancel(self, request: int) -> bool:
        """End a running or waiting request now; False if there is none with that id."""
        for waiting in self.waiting:
            if waiting.id == request:
                self.waiting.remove(waiting)
                return True
        found = any(running.request.id == request for running in self.batch.running.values())
        self._release([request])
        return found

    def reset(self) -> None:
        """Drop all requests, and what the proposer and the budget learnt from earlier ones."""
        self.waiting.clear()
        self._release([running.request.id for running in self.batch.running.values()])
        self.session.reset()
        self.budget.reset()

    def _release(self, requests: Sequence[int]) -> None:
        for slot in [slot for slot, running in self.batch.running.items() if running.request.id in requests]:
            self.batch.release(slot)
            self.session.release(slot)
            self.target.cache.reset(slot)

    def _check(self, tokens: Sequence[int], stop: Sequence[str]) -> None:
        if not tokens:
            raise RequestError("the prompt is empty; give at least one token")
        if len(tokens) >= self.batch.max_positions:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens but the context limit is {self.batch.max_positions}, "
                "answer included; shorten it or raise max_len"
            )
        for token in tokens:
            if not 0 <= token < self.spec.vocab_size:
                raise RequestError(f"token {shown(token)} is outside the vocabulary of {self.spec.vocab_size}")
        if stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this target has none")


def _check_types(target: object, proposer: object, record: object) -> None:
    if not isinstance(target, Target):
        raise ConfigError(f"target={shown(target)} must be a target, for example outrider.load_target('smollm2-135m')")
    if not isinstance(proposer, Proposer):
        raise ConfigError(f"proposer={shown(proposer)} must be a proposer, for example load_proposer('ngram', target)")
    if not callable(record):
        raise ConfigError(f"record={shown(record)} must be a function that takes a record")
