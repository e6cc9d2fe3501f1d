"""The requests in the slots, and how a verified step changes the running ones.

A request takes a slot, has its prompt read there, piece by piece between steps (`Reading`), and then runs (`Running`).
`advance` emits token by token, inside an accepted path too, and stops at the first of: an end-of-text token, a complete
stop string, the request's limit, the context limit. Accepted tokens behind a stop are neither emitted nor counted.

Example: accepted [5, EOS, 9], bonus 4 emits 5 and EOS; the step counts two accepted tokens and no bonus.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import final

import torch
from torch import Tensor

from outrider.budget import SlotState
from outrider.draft import Draft
from outrider.metrics import PrefillRecord, SlotStep
from outrider.processors.base import ProcessorState
from outrider.proposer import Commit, Reused, Session
from outrider.requests.events import Event, FinishReason, Outbox
from outrider.requests.logprobs import token_logprobs
from outrider.requests.text import Piece, TextStream
from outrider.sampling import NO_TOKEN, SamplingParams
from outrider.target import Logits
from outrider.verify import AcceptedPath

__all__ = ["Batch", "Event", "FinishReason", "Reading", "Request", "Running", "prefill_record"]

NO_CHAINS: Mapping[int, Sequence[int]] = {}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how to continue it. `processors` is their state behind the prompt, None without any."""

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    processors: ProcessorState | None = field(default=None, compare=False)
    outbox: Outbox = field(default_factory=Outbox, compare=False)
    arrival_s: float = field(default_factory=perf_counter, compare=False)


@dataclass
class Reading:
    """A request whose prompt is being read in a slot.

    reused     its beginning that is known from an earlier text, or None
    num_read   tokens whose keys and values the slot holds
    features   features of the tokens that were read, in parts [t, F]
    """

    request: Request
    slot: int
    reused: Reused | None = None
    num_read: int = 0
    features: list[Tensor] = field(default_factory=list)

    @property
    def unread(self) -> tuple[int, ...]:
        """The tokens that are left; the last one of the prompt is the root, which the first step reads."""
        return self.request.prompt[self.num_read : -1]

    @property
    def num_cached(self) -> int:
        """Tokens that need not be read."""
        return 0 if self.reused is None else self.reused.length

    def take(self, features_TF: Tensor | None, num_tokens: int) -> None:
        """Note that the next tokens were read, with these features."""
        self.num_read += num_tokens
        self.features += [] if features_TF is None else [features_TF]

    def features_TF(self) -> Tensor | None:
        """Return the features of the tokens that were read, or None without feature layers."""
        return torch.cat(self.features) if len(self.features) > 1 else self.features[0] if self.features else None


@dataclass
class Running:
    """A request that takes part in steps. `tokens` are all committed tokens, the prompt and the emitted ones;
    `processors` is the state of the request's processors behind them."""

    request: Request
    slot: int
    text: TextStream
    tokens: list[int] = field(default_factory=list)
    processors: ProcessorState | None = None

    @property
    def num_emitted(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @classmethod
    def of(cls, request: Request, slot: int, text: TextStream) -> "Running":
        """Return the request with the tokens of its prompt and of its outbox's events; `text` is a new stream."""
        processors = None if request.processors is None else request.processors.fork()
        running = cls(request, slot, text, list(request.prompt), processors)
        for event in request.outbox.events:
            # the text stream is rebuilt by pushing the same tokens again; its pieces were already emitted
            for index, token in enumerate(event.tokens):
                running.append(token)
                text.push(token, drafted=index < event.num_accepted)
        return running

    def append(self, token: int) -> None:
        """Commit a token."""
        self.tokens.append(token)
        if self.processors is not None:
            self.processors.advance(token)


@final
class Batch:
    """A fixed number of slots and their requests."""

    def __init__(self, num_slots: int, max_positions: int, eos_ids: Sequence[int]) -> None:
        self.running: dict[int, Running] = {}
        self.reading: dict[int, Reading] = {}
        self.num_slots = num_slots
        self.max_positions = max_positions
        self.eos_ids = frozenset(eos_ids)

    @property
    def slots(self) -> list[int]:
        return list(self.running)

    @property
    def roots(self) -> list[int]:
        return [running.tokens[-1] for running in self.running.values()]

    @property
    def samplings(self) -> list[SamplingParams]:
        return [running.request.params for running in self.running.values()]

    @property
    def processors(self) -> list[ProcessorState | None]:
        """The state of each slot's processors; empty if no slot has any, so that a step without them pays nothing."""
        states = [running.processors for running in self.running.values()]
        found = [None if state is None or state.is_idle else state for state in states]
        return found if any(one is not None for one in found) else []

    def is_broken(self, events: Sequence[Event]) -> bool:
        """Return whether a request ended because the target's numbers are not finite, and not for its form alone."""
        return any(
            event.finished == "error" and (running.processors is None or running.processors.failure() is None)
            for running, event in zip(self.running.values(), events, strict=True)
        )

    def forced(self, most: int) -> dict[int, list[int]]:
        """Return the tokens that forms leave no choice about, at most so many, by the places of their slots."""
        chains = {
            place: running.processors.forced(min(most, self._num_remaining(running) - 1))
            for place, running in enumerate(self.running.values())
            if running.processors is not None
        }
        return {place: tokens for place, tokens in chains.items() if tokens}

    def slot_states(self, session: Session, forced: Mapping[int, Sequence[int]]) -> list[SlotState]:
        """Return the state of each slot for the budget; `session` is the proposer's, `forced` as above."""
        return [
            SlotState(
                request=running.request.id,
                num_remaining=self._num_remaining(running),
                context_length=len(running.tokens),
                greedy=running.request.params.greedy,
                num_pending=session.num_pending(slot),
                num_forced=len(forced.get(place, ())),
            )
            for place, (slot, running) in enumerate(self.running.items())
        ]

    def _num_remaining(self, running: Running) -> int:
        """Return how many tokens a request may still emit."""
        return min(running.request.params.max_tokens - running.num_emitted, self.max_positions - len(running.tokens))

    @property
    def requests(self) -> dict[int, Request]:
        """The request of every taken slot."""
        running = {slot: one.request for slot, one in self.running.items()}
        return running | {slot: one.request for slot, one in self.reading.items()}

    def free_slots(self) -> list[int]:
        return [slot for slot in range(self.num_slots) if slot not in self.running and slot not in self.reading]

    def pieces(self, num_rows: int) -> dict[int, tuple[int, ...]]:
        """Return the next tokens to read, by slot: equal shares of `num_rows`, and at least one token of each."""
        width = max(1, num_rows // max(1, len(self.reading)))
        return {slot: one.unread[:width] for slot, one in self.reading.items()}

    def place(self, request: Request, slot: int, text: TextStream) -> None:
        """Let a request whose prompt is read take part in steps."""
        self.running[slot] = Running.of(request, slot, text)
        self.reading.pop(slot, None)

    def restore(self, text_of: Callable[[Request], TextStream]) -> None:
        """Set every request back to the state of its outbox, and drop those that have ended."""
        for slot, running in list(self.running.items()):
            if running.request.outbox.finished:
                self.running.pop(slot)
            else:
                self.place(running.request, slot, text_of(running.request))

    def release(self, slot: int) -> None:
        self.running.pop(slot, None)
        self.reading.pop(slot, None)

    def clear(self) -> None:
        self.running.clear()
        self.reading.clear()

    def advance(
        self,
        draft: Draft,
        accepted: Sequence[AcceptedPath],
        logits_BMV: Logits | None = None,
        forced: Mapping[int, Sequence[int]] = NO_CHAINS,
    ) -> tuple[list[SlotStep], list[Event]]:
        """Emit into the outboxes. The events' `finished` marks requests that ended; their slots are still taken.

        Args:
            logits_BMV: the target's, for requests that want log-probabilities.
            forced: chains that no proposer drafted, by the places of their slots.
        """
        steps, events = [], []
        for slot, (running, path, tree) in enumerate(
            zip(list(self.running.values()), accepted, draft.trees, strict=True)
        ):
            context_length = len(running.tokens)
            event = self._emit(running, path)
            if running.request.params.logprobs is not None and logits_BMV is not None and event.tokens:
                rows = [0, *path.rows][: len(event.tokens)]
                logprobs = token_logprobs(logits_BMV[slot], rows, event.tokens, running.request.params.logprobs)
                event = replace(event, logprobs=logprobs)
            running.request.outbox.events.append(event)
            events.append(event)
            steps.append(
                SlotStep(
                    request=running.request.id,
                    context_length=context_length,
                    num_nodes=len(tree.tokens),
                    draft_depth=max(tree.depths(), default=0),
                    num_accepted=event.num_accepted,
                    num_emitted=len(event.tokens),
                    finished=event.finished is not None,
                    num_forced=len(forced.get(slot, ())),
                )
            )
        return steps, events

    def commits(self, accepted: Sequence[AcceptedPath], events: Sequence[Event]) -> list[Commit]:
        """Return the accepted paths for the proposer's session, cut where the text ended."""
        return [
            Commit(slot, [0, *path.rows[: event.num_accepted]], list(event.tokens), index)
            for index, (slot, path, event) in enumerate(zip(self.running, accepted, events, strict=True))
        ]

    def _emit(self, running: Running, path: AcceptedPath) -> Event:
        emitted: list[int] = []
        pieces: list[Piece] = []
        finished: FinishReason | None = None
        for index, token in enumerate([*path.tokens, path.bonus]):
            if token == NO_TOKEN:
                finished = "error"
            else:
                running.append(token)
                emitted.append(token)
                pieces += running.text.push(token, drafted=index < len(path.tokens))
                finished = self._reason_to_stop(running, token)
            if finished is not None:
                break
        # the rest of the text may complete a stop string that the last token left open
        if finished is not None and not running.text.stopped:
            pieces += running.text.flush()
            if running.text.stopped and finished != "eos":
                finished = "stop"
        return Event(
            request=running.request.id,
            tokens=tuple(emitted),
            num_accepted=min(len(path.tokens), len(emitted)),
            pieces=tuple(pieces),
            finished=finished,
            error=_failure(running) if finished == "error" else None,
        )

    def _reason_to_stop(self, running: Running, token: int) -> FinishReason | None:
        params = running.request.params
        # an end-of-text token wins over a stop string that it completes
        if token in self.eos_ids and not params.ignore_eos:
            return "eos"
        if running.text.stopped or token in params.stop_token_ids:
            return "stop"
        if running.num_emitted >= params.max_tokens:
            return "length"
        return "context" if len(running.tokens) >= self.max_positions else None


def prefill_record(
    read: Sequence[Reading], pieces: Mapping[int, Sequence[int]], seconds: Mapping[str, float]
) -> PrefillRecord:
    """Return the record of a chunk, just read: the pieces by slot, and a clock's seconds."""
    now = perf_counter()
    return PrefillRecord(
        requests=tuple(one.request.id for one in read),
        num_tokens=sum(map(len, pieces.values())),
        target_s=seconds["verify_s"],
        proposer_s=seconds["propose_s"],
        cached_tokens=tuple(
            one.num_cached if one.num_read == one.num_cached + len(pieces[one.slot]) else 0 for one in read
        ),
        waited_s=tuple(now - one.request.arrival_s for one in read),
        started=tuple(one.request.id for one in read if not one.unread),
    )


def _failure(running: Running) -> str:
    """Return why no token could be chosen."""
    if running.processors is not None and (said := running.processors.failure()):
        return f"the form of structured_outputs cannot go on behind {running.num_emitted} tokens: {said}"
    return (
        f"the target's logits behind {len(running.tokens)} tokens are not finite, so no token can be chosen; "
        "the dtype overflows (load the target in bfloat16 or float32) or its weights are damaged"
    )
