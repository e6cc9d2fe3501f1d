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

What was decided for a request lies in its outbox (`requests/events.py`) until it is read. The outboxes are the truth:
after an exception anywhere in a step, cache and session are made anew from them before the next one (`loop/guard.py`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import final

from outrider.batch import Batch, Request
from outrider.budget import Budget, BudgetChoice, load_budget
from outrider.errors import ConfigError
from outrider.loop.clock import Clock
from outrider.loop.draft_check import check_draft
from outrider.loop.guard import Guard
from outrider.loop.memory import MemoryPlan, check_fits
from outrider.metrics import PrefillRecord, StepRecord
from outrider.noise import Stream
from outrider.proposer import Proposer, SessionPlan
from outrider.records.values import shown
from outrider.requests.events import Completion, Event, Outboxes
from outrider.requests.prompts import Prompt, as_params, as_params_of_each, as_prompts, check_fit
from outrider.requests.text import TextStream, encode
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.verify import VerifyInput, verifier

__all__ = ["Engine"]

Recorder = Callable[[StepRecord | PrefillRecord], None]


@final
class Engine:
    """Decodes requests in a batch of slots, with a target and a proposer.

    One thread uses an engine at a time; engines in several threads may share a target and a proposer.

    Args:
        max_batch: slots; more requests wait.
        max_len: the longest text in tokens, prompt included; at most (and by default) the target's own limit.
        num_nodes: nodes that each slot may draft per step; by default what the proposer asks for.
        verification: "coupled", "rejection" or "block"; see `outrider.verify`.
        budget: "fixed" drafts `num_nodes` in every step; "auto" at most that many, as many as pay, which may be none
            (`outrider.adaptive.controller`); or a budget of your own.
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
        self.decoding_threads = target.decoding_threads
        self.target = target.open(self.memory.cache, proposer.spec.feature_layers)
        self.proposer = proposer
        self.session_plan = SessionPlan(
            max_slots=self.memory.cache.num_slots,
            max_positions=self.memory.cache.capacity,
            noise=Stream.TARGET if verification == "coupled" else Stream.DRAFT,
            device=spec.device,
        )
        self.session = proposer.open(self.session_plan)
        self.budget = budget if isinstance(budget, Budget) else load_budget(budget, target, self.memory.num_nodes)
        self.batch = Batch(self.memory.cache.num_slots, self.memory.cache.capacity, spec.eos_ids)
        self.waiting: deque[Request] = deque()
        self.outboxes = Outboxes()
        self.cancelled: set[int] = set()
        self.guard = Guard(self._rebuild)
        self.num_requests = 0
        self.num_steps = 0

    def step(self) -> None:
        """Give every running request at least one token. `take` gives what became of them."""
        with self.guard:
            if not self.batch.running:
                return
            clock, batch = Clock(self.spec.device), self.batch
            slots, samplings = batch.slots, batch.samplings
            limits = self.budget.limits(batch.slot_states(self.session), len(self.waiting))
            proposed = self.session.propose(slots, limits)  # may be wrong, never unsafe
            node_limits = [(limit.num_nodes, limit.num_nodes) for limit in limits]  # what is too deep costs time alone
            draft = self.budget.prune(check_draft(proposed, slots, node_limits, self.spec.vocab_size))
            clock.lap("propose")
            forward = self.target.forward(slots, batch.roots, draft)  # the only target call in the loop
            clock.lap("verify")
            accepted = self.verifier(
                draft, VerifyInput(forward.logits_BMV, self.target.cache.lengths_of(slots), samplings)
            )
            clock.lap("accept")
            self.target.cache.commit(slots, [path.rows for path in accepted])  # it holds every token but the root
            clock.lap("commit")
            steps, events = batch.advance(draft, accepted)  # emit, and stop where a text ends
            self.outboxes.announce(event.request for event in events)
            clock.lap("host")
            if any(event.finished == "error" for event in events):
                self._rebuild()  # numbers that are not finite may be anywhere behind a length
            else:
                commits = batch.commits(accepted, events)
                self.session.observe(commits, forward.features_BMF)
                clock.lap("propose")
                self.budget.observe(commits, clock.seconds())
                self._release([event.request for event in events if event.finished])
            clock.lap("host")
            self.num_steps += 1
        self.record(StepRecord(self.num_steps, draft.num_rows, draft.is_chain, tuple(steps), **clock.seconds()))

    def admit(self) -> None:
        """Let waiting requests take the free slots: read their prompts, all in one go."""
        self._drop_cancelled()
        if not self.waiting:
            return
        with self.guard:
            free = self.batch.free_slots()
            requests = list(islice(self.waiting, len(free)))
            if not requests:
                return
            clock = Clock(self.spec.device)
            slots = free[: len(requests)]
            features = self.target.prefill(slots, [request.prompt[:-1] for request in requests])
            clock.lap("verify")
            for slot, request, features_TF in zip(slots, requests, features, strict=True):
                self.batch.place(request, slot, self._text(request))
                self.session.admit(slot, request.prompt, request.params, features_TF)
                self.waiting.popleft()
            if self.budget.reads_ahead:
                self.session.catch_up(slots)
            clock.lap("propose")
        ids, seconds = tuple(one.id for one in requests), clock.seconds()
        num_tokens = sum(len(request.prompt) - 1 for request in requests)
        self.record(PrefillRecord(ids, num_tokens, seconds["verify_s"], seconds["propose_s"]))

    def _rebuild(self) -> None:
        """Make everything anew from the outboxes: the batch, the cache, the proposer's session, the budget.

        What the proposer learnt from earlier requests is lost.
        """
        batch, cache = self.batch, self.target.cache
        batch.restore(self._text)
        self.outboxes.announce_all()
        running = {one.request.id for one in batch.running.values()}
        self.waiting = deque(request for request in self.waiting if request.id not in running)
        cache.clear()
        self.session = self.proposer.open(self.session_plan)
        self.budget.reset()
        if not batch.running:
            return
        features = self.target.prefill(batch.slots, [one.tokens[:-1] for one in batch.running.values()])
        for (slot, one), features_TF in zip(batch.running.items(), features, strict=True):
            self.session.admit(slot, one.tokens, one.request.params, features_TF)

    @property
    def busy(self) -> bool:
        """Whether a request is running or waiting, or has events that nobody has read."""
        return bool(self.batch.running or self.waiting or self.outboxes.pending)

    def add(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Queue a request and return its id.

        Args:
            prompt: text (one user turn of a chat), a list of messages, or token ids.
            params: how to sample and when to end; by default greedy, with at most 128 tokens.

        Raises:
            RequestError: for an empty or too long prompt, a token out of range, or a wrong type.
        """
        params = as_params(params)
        tokens = tuple(encode(self.tokenizer, prompt))
        check_fit(tokens, params, self.tokenizer, self.spec.vocab_size, self.batch.max_positions)
        self.num_requests += 1
        outbox = self.outboxes.open(self.num_requests)
        self.waiting.append(Request(id=self.num_requests, prompt=tokens, params=params, outbox=outbox))
        return self.num_requests

    def take(self) -> list[Event]:
        """Take the events that nobody has read, of all requests but those of a `stream`."""
        return list(self.outboxes.take())

    def run(self) -> Iterator[Event]:
        """Work until no request is left, and give the events of all requests but those of a `stream`.

        Requests may be added and cancelled between events. An iterator that is left loses nothing: the next one goes on
        where it ended.
        """
        while True:
            yield from self.outboxes.take()
            if not self.busy:
                return
            self._advance()

    def _advance(self) -> None:
        with self.decoding_threads():
            self.admit()
            self.step()

    def stream(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[Event]:
        """Yield the events of these prompts (or of one) as they come; `event.request` counts the prompts from 0.

        Args:
            prompts: one prompt or several; see `add`.
            params: of all of them, or a list with one for each.

        An iterator that is dropped before its end cancels what is left.
        """
        ids: dict[int, int] = {}
        try:
            asked = as_prompts(prompts)
            for index, (prompt, one) in enumerate(zip(asked, as_params_of_each(params, len(asked)), strict=True)):
                id = self.add(prompt, one)
                self.outboxes.claim(id)
                ids[id] = index
            while ids:
                for event in self.outboxes.take(ids):
                    index = ids[event.request] if event.finished is None else ids.pop(event.request)
                    yield replace(event, request=index)
                for id in [id for id in ids if id not in self.outboxes]:
                    yield Event(request=ids.pop(id), finished="cancelled")
                if ids:
                    self._advance()
        finally:
            self.cancelled |= ids.keys()
            self._drop_cancelled()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Return the finished answers, in the order of the prompts; see `stream`."""
        encoded = [encode(self.tokenizer, prompt) for prompt in as_prompts(prompts)]
        events: list[list[Event]] = [[] for _ in encoded]
        for event in self.stream(encoded, params):
            events[event.request].append(event)
        return [Completion.of(index, prompt, events[index]) for index, prompt in enumerate(encoded)]

    def cancel(self, request: int) -> bool:
        """End a running or waiting request and drop what was not read of it; False if there is none with that id.

        While a step is at work (this is a signal handler, or another thread) it takes effect before the next one.
        """
        known = [*self.waiting, *(running.request for running in self.batch.running.values())]
        self.cancelled.add(request)
        self._drop_cancelled()
        return any(one.id == request for one in known)

    def reset(self) -> None:
        """Drop all requests, and what the proposer and the budget learnt from earlier ones."""
        if self.guard.sound or self.guard.held:
            with self.guard:
                self._release([running.request.id for running in self.batch.running.values()])
                self.session.reset()
                self.budget.reset()
        for requests in (self.batch.running, self.waiting, self.outboxes):  # of an unsound engine, this is enough
            requests.clear()

    def _drop_cancelled(self) -> None:
        if not self.cancelled or self.guard.held:
            return
        requests = list(self.cancelled)
        self.waiting = deque(one for one in self.waiting if one.id not in self.cancelled)
        if self.guard.sound:
            with self.guard:
                self._release(requests)
        for slot in [slot for slot, one in self.batch.running.items() if one.request.id in self.cancelled]:
            self.batch.release(slot)  # of a batch that will be made anew
        for request in requests:
            self.outboxes.close(request)
        self.cancelled.difference_update(requests)

    def _release(self, requests: Sequence[int]) -> None:
        for slot in [slot for slot, running in self.batch.running.items() if running.request.id in requests]:
            self.session.release(slot)
            self.target.cache.reset(slot)
            self.batch.release(slot)

    def _text(self, request: Request) -> TextStream:
        return TextStream(self.tokenizer, request.params.stop)


def _check_types(target: object, proposer: object, record: object) -> None:
    if not isinstance(target, Target):
        raise ConfigError(f"target={shown(target)} must be a target, for example outrider.load_target('smollm2-135m')")
    if not isinstance(proposer, Proposer):
        raise ConfigError(f"proposer={shown(proposer)} must be a proposer, for example load_proposer('ngram', target)")
    if not callable(record):
        raise ConfigError(f"record={shown(record)} must be a function that takes a record")
