"""Speculative decoding, in one loop.

Plain decoding asks the target for one token per forward pass. A forward pass is limited by reading the weights, so a
few more rows in the same pass cost little. A *proposer* therefore guesses the next tokens. The target reads the last
committed token (the *root*) together with all guesses in one pass. The verifier keeps the guesses that the target would
have written itself, and the target's own next token after them (the *bonus*). Every step yields at least one token;
the text is the target's own. `Engine.step` is the whole algorithm; plain decoding is the same with an empty draft.

    root: "The"    draft: "cat sat down"    target after each row: "cat", "sat", "on", ...
    accepted: "cat sat", bonus: "on"        one forward, three tokens

Requests wait until a slot is free, while others go on (continuous admission). Their prompts are read in chunks between
steps; then they run until an end-of-text token, a stop or a limit. Events wait in outboxes
(`requests/events.py`) until they are read; after an exception anywhere in a step, cache and session are rebuilt from
them (`loop/guard.py`). A finished text is kept for prompts that begin like it (`loop/prefixes.py`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import final

from outrider.batch import Batch, Reading, Request, prefill_record
from outrider.budget import Budget, BudgetChoice, budget_of
from outrider.loop.answers import check_limits, open_session
from outrider.loop.arguments import check_types, checked_chunk
from outrider.loop.clock import Clock
from outrider.loop.draft_check import check_draft, check_pruned
from outrider.loop.free_memory import allocating
from outrider.loop.guard import Guard
from outrider.loop.memory import MemoryPlan, check_fits
from outrider.loop.prefixes import PrefixStore
from outrider.metrics import PrefillRecord, StepRecord
from outrider.noise import Stream
from outrider.processors.start import start_processors
from outrider.proposer import NOTHING, Proposer, Reused, SessionPlan
from outrider.requests.events import Completion, Event, Outboxes
from outrider.requests.prompts import Prompt, as_params, as_params_of_each, as_prompts, check_fit
from outrider.requests.text import TextStream, encode
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets.prefill import prefill_rows
from outrider.verify import VerifyInput, verifier

__all__ = ["Engine", "Recorder"]

Recorder = Callable[[StepRecord | PrefillRecord], None]


@final
class Engine:
    """A decoder of requests in a batch of slots, with a target and a proposer.

    One thread uses an engine at a time; engines in several threads may share a target and a proposer.

    Args:
        max_batch: number of slots; more requests wait.
        max_len: the longest text in tokens, prompt included; at most (and by default) the target's own limit.
        num_nodes: nodes that each slot may draft per step; by default the proposer's `max_nodes`.
        verification: "coupled", "rejection" or "block"; see `outrider.verify`.
        prefix_cache_bytes: memory for keys and values of finished texts; a prompt that begins like one of them is read
            from there on. 0 keeps none; by default as much as the slots take, at most 1 GiB, where that changes no
            bit (`TargetSpec.batch_invariant`), and else 0.
        prefill_chunk: tokens of prompts read between two steps, so that a long prompt does not stall running requests;
            by default 256 on the CPU and 8192 on a GPU. Requests that are being read share it.
        budget: "fixed" drafts `num_nodes` in every step; "auto" drafts up to that many, as many as pay, or none
            (`outrider.adaptive.controller`); or a budget of your own.
        record: callback for every step and prefill record.

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
        prefix_cache_bytes: int | None = None,
        prefill_chunk: int | None = None,
        verification: str = "coupled",
        budget: BudgetChoice | Budget = "fixed",
        record: Recorder = lambda record: None,
    ) -> None:
        check_types(target, proposer, record)
        spec = target.spec
        self.spec = spec
        self.tokenizer = target.tokenizer
        self.record = record
        self.memory = MemoryPlan.of(target, proposer, max_batch, max_len, num_nodes, prefix_cache_bytes)
        check_fits(self.memory, spec.device)
        self.prefill_chunk = checked_chunk(prefill_chunk, prefill_rows(spec.device))
        self.verifier = verifier(verification)
        self.decoding_threads = target.decoding_threads
        with allocating(f"an engine ({self.memory})", self.memory.remedy, spec.device):
            self.target = target.open(self.memory.cache, proposer.spec.feature_layers)
        self.proposer = proposer
        self.session_plan = SessionPlan(
            max_slots=self.memory.cache.num_slots,
            max_positions=self.memory.cache.capacity,
            noise=Stream.TARGET if verification == "coupled" else Stream.DRAFT,
            device=spec.device,
        )
        with allocating(f"the proposer of an engine ({self.memory})", self.memory.remedy, spec.device):
            self.session = open_session(proposer, self.session_plan)
        self.budget = budget_of(budget, target, self.memory.num_nodes)
        self.batch = Batch(self.memory.cache.num_slots, self.memory.cache.capacity, spec.eos_ids)
        self.prefixes = PrefixStore(self.memory.prefix_bytes)
        self.waiting: deque[Request] = deque()
        self.outboxes, self.cancelled = Outboxes(), set[int]()
        self.guard = Guard(self._rebuild)
        self.num_requests = self.num_steps = 0

    def step(self) -> None:
        """Give every running request at least one token; `take` returns them."""
        with self.guard:
            if not self.batch.running:
                return
            clock, batch, cache = Clock(self.spec.device), self.batch, self.target.cache
            slots = batch.slots
            with clock("propose"):
                forced = batch.forced(self.memory.num_forced)  # what a form leaves no choice about is drafted for free
                limits = self.budget.limits(batch.slot_states(self.session, forced), len(self.waiting))
                limits = check_limits(limits, len(slots), self.memory.num_nodes)
                limits = [NOTHING if place in forced else limit for place, limit in enumerate(limits)]
                proposed = self.session.propose(list(slots), list(limits))  # may be wrong, never unsafe
                whole = check_draft(proposed, slots, limits, self.spec.vocab_size, check_depth=False)
                draft = check_pruned(self.budget.prune(whole), whole, slots, limits, self.spec.vocab_size)
                draft = draft.with_chains(forced)
            with clock("verify"):
                forward = self.target.forward(slots, batch.roots, draft)  # the only target call in the loop
            with clock("accept"):
                given = VerifyInput(forward.logits_BMV, cache.lengths_of(slots), batch.samplings, batch.processors)
                accepted = self.verifier(draft, given)
            with clock("commit"):
                cache.commit(slots, [path.rows for path in accepted])  # it holds every token but the root
            with clock("host"):
                steps, events = batch.advance(draft, accepted, forward.logits_BMV, forced)  # emit, and stop
                self.outboxes.announce(event.request for event in events)
            if batch.is_broken(events):
                with clock("host"):
                    self._rebuild()  # numbers that are not finite may be anywhere behind a length
            else:
                commits = batch.commits(accepted, events)
                with clock("propose"):
                    self.session.observe([one for one in commits if one.tokens], forward.features_BMF)
                with clock("host"):
                    self.budget.observe(batch.commits(accepted, events), clock.seconds())
                    self._release([event.request for event in events if event.finished])
            self.num_steps += 1
        self.record(StepRecord(self.num_steps, draft.num_rows, draft.is_chain, tuple(steps), **clock.seconds()))

    def admit(self) -> None:
        """Give waiting requests the free slots, and read the next chunk of the prompts; those read to the end run."""
        self._drop_cancelled()
        if not self.batch.reading and not (self.waiting and self.batch.free_slots()):
            return
        with self.guard:
            clock, batch = Clock(self.spec.device), self.batch
            with clock("verify"):
                for slot, request in zip(batch.free_slots(), list(self.waiting), strict=False):
                    batch.reading[slot] = self._begun(request, slot)
                    self.waiting.popleft()
                pieces = batch.pieces(self.prefill_chunk)
                features = self.target.prefill(list(pieces), list(pieces.values()))
            with clock("propose"):
                read = [batch.reading[slot] for slot in pieces]
                for one, features_TF in zip(read, features, strict=True):
                    one.take(features_TF, len(pieces[one.slot]))
                self._start([one for one in read if not one.unread])
        self.record(prefill_record(read, pieces, clock.seconds()))

    def _begun(self, request: Request, slot: int) -> Reading:
        """Fill the slot with what is known of the beginning of a prompt."""
        found = self.prefixes.find(request.prompt, with_features=bool(self.proposer.spec.feature_layers))
        if found is None:
            return Reading(request, slot)
        self.target.cache.paste(slot, found.prefix.cached, found.length)
        return Reading(request, slot, Reused(found.prefix.kept, found.length), num_read=found.length)

    def _start(self, read: Sequence[Reading]) -> None:
        """Let requests whose prompts are read take part in steps."""
        for one in read:
            prompt, params, features_TF = one.request.prompt, one.request.params, one.features_TF()
            self.batch.place(one.request, one.slot, self._text(one.request))
            if one.reused is None:
                self.session.admit(one.slot, prompt, params, features_TF)
            else:
                self.session.reuse(one.slot, prompt, params, features_TF, one.reused)
        if read and self.budget.reads_ahead:
            self.session.catch_up([one.slot for one in read])

    def _rebuild(self) -> None:
        """Rebuild batch, cache, session and budget from the outboxes. What the proposer had learnt is lost."""
        batch, cache = self.batch, self.target.cache
        batch.restore(self._text)
        self.outboxes.announce_all()
        running = {one.request.id for one in batch.running.values()}
        queued = {one.id: one for one in (*batch.requests.values(), *self.waiting) if one.id not in running}
        self.waiting = deque(queued.values())  # prompts that were being read are read again
        batch.reading.clear()
        cache.clear()
        self.session = open_session(self.proposer, self.session_plan)
        self.budget.reset()
        if not batch.running:
            return
        features = self.target.prefill(batch.slots, [one.tokens[:-1] for one in batch.running.values()])
        for (slot, one), features_TF in zip(batch.running.items(), features, strict=True):
            self.session.admit(slot, tuple(one.tokens), one.request.params, features_TF)  # its own, to change

    @property
    def busy(self) -> bool:
        """True while a request is running, being read or waiting, or has unread events."""
        return bool(self.batch.requests or self.waiting or self.outboxes.pending)

    def add(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Add a request to the queue and return its id.

        Args:
            prompt: text (one user turn of a chat), a list of messages, or token ids.
            params: sampling and stop settings; by default greedy, with at most 128 tokens.

        Raises:
            RequestError: for an empty or too long prompt, a token out of range, or a wrong type.
        """
        params = as_params(params)
        tokens = tuple(encode(self.tokenizer, prompt))
        check_fit(tokens, params, self.tokenizer, self.spec.vocab_size, self.batch.max_positions)
        processors = start_processors(params, tokens, self.tokenizer, self.spec.vocab_size, self.spec.eos_ids)
        self.num_requests += 1
        outbox = self.outboxes.open(self.num_requests)
        request = Request(id=self.num_requests, prompt=tokens, params=params, processors=processors, outbox=outbox)
        self.waiting.append(request)
        return self.num_requests

    def take(self) -> list[Event]:
        """Return the unread events of all requests, except those of a `stream`."""
        return list(self.outboxes.take())

    def run(self) -> Iterator[Event]:
        """Step until no request is left, and yield the events of all requests, except those of a `stream`.

        Requests may be added and cancelled between events. Leaving the iterator loses nothing: the next one continues.
        """
        while True:
            yield from self.outboxes.take()
            if not self.busy:
                return
            self.advance()

    def advance(self) -> None:
        """Admit waiting requests and step once; `take` returns the events."""
        with self.decoding_threads():
            self.admit()
            self.step()

    def stream(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[Event]:
        """Yield the events of one prompt or several as they come; `event.request` counts the prompts from 0.

        Args:
            prompts: a prompt (text, a list of messages, or token ids), or a list of prompts.
            params: settings for all prompts, or a list with one for each.

        Dropping the iterator before its end cancels the requests that are left.
        """
        ids: dict[int, int] = {}
        try:
            given = as_prompts(prompts)
            for index, (prompt, one) in enumerate(zip(given, as_params_of_each(params, len(given)), strict=True)):
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
                    self.advance()
        finally:
            self.cancelled |= ids.keys()
            self._drop_cancelled()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Return the finished answers, in the order of the prompts; the arguments are those of `stream`."""
        encoded = [encode(self.tokenizer, prompt) for prompt in as_prompts(prompts)]
        events: list[list[Event]] = [[] for _ in encoded]
        for event in self.stream(encoded, params):
            events[event.request].append(event)
        return [Completion.of(index, prompt, events[index]) for index, prompt in enumerate(encoded)]

    def cancel(self, request: int) -> bool:
        """End a running or waiting request and drop its unread events; return False if there is none with that id.

        Called during a step (from a signal handler or another thread), it takes effect before the next one.
        """
        known = [*self.waiting, *self.batch.requests.values()]
        self.cancelled.add(request)
        self._drop_cancelled()
        return any(one.id == request for one in known)

    def reset(self) -> None:
        """Drop all requests, and everything that was kept or learnt of earlier ones."""
        if self.guard.sound or self.guard.held:
            with self.guard:
                self._release([request.id for request in self.batch.requests.values()])
                self.session.reset()
                self.budget.reset()
        self.prefixes.clear()
        for requests in (self.batch, self.waiting, self.outboxes):  # enough for an unsound engine
            requests.clear()

    def close(self) -> None:
        """Let the proposer save what it was asked to; without this call it does so when Python exits."""
        self.session.close()

    def _drop_cancelled(self) -> None:
        if not self.cancelled or self.guard.held:
            return
        requests = list(self.cancelled)
        self.waiting = deque(one for one in self.waiting if one.id not in self.cancelled)
        if self.guard.sound:
            with self.guard:
                self._release(requests)
        for slot in [slot for slot, one in self.batch.requests.items() if one.id in self.cancelled]:
            self.batch.release(slot)  # left over in an unsound engine, whose batch will be rebuilt
        for request in requests:
            self.outboxes.close(request)
        self.cancelled.difference_update(requests)

    def _release(self, requests: Sequence[int]) -> None:
        for slot in [slot for slot, one in self.batch.requests.items() if one.id in requests]:
            if slot in self.batch.running:
                running, needs = self.batch.running[slot], bool(self.proposer.spec.feature_layers)
                self.prefixes.keep(running.tokens, slot, self.target.cache, self.session, with_features=needs)
                self.session.release(slot)
            self.target.cache.reset(slot)
            self.batch.release(slot)

    def _text(self, request: Request) -> TextStream:
        return TextStream(self.tokenizer, request.params.stop, request.params.min_tokens)
