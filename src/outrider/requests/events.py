"""Events of requests, and the outboxes that keep them until they are read.

A step decides tokens for many requests at once. A reader may leave between two events and come back, or read one
request at a time. So each request has an `Outbox`, which keeps its events until they are taken:

    step   request 1: "The", request 2: "cat"        outboxes  1: ["The"]  2: ["cat"]
    a reader takes "The" and leaves                  outboxes  1: []       2: ["cat"]
    the next reader gets "cat" first

An event is appended whole, by one operation that no signal can divide. So after an exception the outboxes are the
truth, and an engine sets its batch back to them.
"""

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from outrider.errors import RequestError
from outrider.requests.logprobs import TokenLogprob
from outrider.requests.text import Piece

__all__ = ["Completion", "Event", "FinishReason", "Outbox", "Outboxes"]

FinishReason = Literal["eos", "stop", "length", "context", "cancelled", "error"]
"""Reasons for the end of a request: an end-of-text token, a stop string or stop token, `max_tokens`, the context limit
of the engine, `Engine.cancel` (seen by a `stream` only), or logits that are not finite."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Event:
    """The tokens that one step gave to one request, or its cancellation.

    request       id from `Engine.add`; in `Engine.stream`, the number of the prompt, from 0
    tokens        emitted token ids; the first `num_accepted` of them came from the draft
    num_accepted  tokens that came from the draft
    pieces        their text, as far as it is certain
    finished      reason for the end of the request, or None while it continues
    error         message if `finished` is "error"
    logprobs      one entry per token if the request asked for `logprobs`
    """

    request: int
    tokens: tuple[int, ...] = ()
    num_accepted: int = 0
    pieces: tuple[Piece, ...] = ()
    finished: FinishReason | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def raise_for_error(self) -> None:
        """Raise what ended the request, if that was an error.

        Raises:
            RequestError: with the event's `error`.
        """
        if self.error is not None:
            raise RequestError(self.error)

    def __repr__(self) -> str:
        """
        >>> Event(request=0, tokens=(5, 6), num_accepted=1)
        Event(request=0, text='', 2 tokens, 1 accepted)
        """
        ended = "" if self.finished is None else f", finished={self.finished!r}"
        counts = f"{len(self.tokens)} tokens, {self.num_accepted} accepted"
        return f"Event(request={self.request}, text={self.text!r}, {counts}{ended}{_failure(self.error)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Completion:
    """A finished answer.

    request       number of its prompt in the call, from 0
    prompt        token ids of the prompt
    tokens        token ids of the answer
    pieces        text of the answer in pieces, each marked if it came from a draft
    finished      reason for its end
    error         message if `finished` is "error"
    num_forwards  target forwards that gave it tokens
    logprobs      one entry per token if the request asked for `logprobs`
    """

    request: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    pieces: tuple[Piece, ...]
    finished: FinishReason
    error: str | None = None
    num_forwards: int = field(default=0, compare=False)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, request: int, prompt: Sequence[int], events: Sequence[Event]) -> "Completion":
        """Return the answer that all events of a request make up."""
        last = events[-1]
        assert last.finished is not None, "the last event ends its request"
        return cls(
            request=request,
            prompt=tuple(prompt),
            tokens=tuple(token for event in events for token in event.tokens),
            pieces=tuple(piece for event in events for piece in event.pieces),
            finished=last.finished,
            error=last.error,
            num_forwards=sum(bool(event.tokens) for event in events),
            logprobs=tuple(one for event in events for one in event.logprobs),
        )

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tau(self) -> float:
        """Tokens per target forward: 1 is plain decoding. NaN for an answer without a token."""
        return len(self.tokens) / self.num_forwards if self.num_forwards else math.nan

    def __repr__(self) -> str:
        """
        >>> Completion(request=0, prompt=(1,), tokens=(5, 6), pieces=(), finished="eos", num_forwards=1)
        Completion('', 2 tokens, tau 2.00, finished='eos')
        """
        facts = f"{len(self.tokens)} tokens, tau {self.tau:.2f}, finished={self.finished!r}"
        return f"Completion({self.text!r}, {facts}{_failure(self.error)})"


def _failure(error: str | None) -> str:
    return "" if error is None else f", error={error!r}"


@final
@dataclass
class Outbox:
    """The events of one request; `num_taken` of them are read. A stream that reads it alone sets `claimed`."""

    events: list[Event] = field(default_factory=list)
    num_taken: int = 0
    claimed: bool = False

    @property
    def pending(self) -> bool:
        return self.num_taken < len(self.events)

    @property
    def finished(self) -> bool:
        return bool(self.events) and self.events[-1].finished is not None


@final
class Outboxes:
    """The outboxes of all requests whose last event was not read yet, by id."""

    def __init__(self) -> None:
        self._of: dict[int, Outbox] = {}
        self._ready: dict[int, None] = {}  # requests with events to take, in the order in which they got them

    def open(self, request: int) -> Outbox:
        """Return the empty outbox of a new request."""
        self._of[request] = Outbox()
        return self._of[request]

    def announce(self, requests: Iterable[int]) -> None:
        """Note that these requests have new events."""
        self._ready |= dict.fromkeys(requests)

    def announce_all(self) -> None:
        """Find every request that has events to take."""
        self.announce([request for request, outbox in list(self._of.items()) if outbox.pending])

    def claim(self, request: int) -> None:
        """Keep the request's events for the reader that names it."""
        self._of[request].claimed = True

    def close(self, request: int) -> None:
        """Drop the request's outbox with its unread events."""
        self._of.pop(request, None)
        self._ready.pop(request, None)

    def clear(self) -> None:
        """Drop everything."""
        self._of.clear()
        self._ready.clear()

    @property
    def pending(self) -> bool:
        """True while there is an unread event that no stream has claimed."""
        return any(not self._of[request].claimed for request in list(self._ready) if request in self._of)

    def __contains__(self, request: int) -> bool:
        return request in self._of

    def take(self, requests: Container[int] | None = None) -> Iterator[Event]:
        """Yield unread events, request by request; leaving the iterator keeps the rest.

        Args:
            requests: ids of the requests to read; by default all that no stream has claimed.
        """
        for request in list(self._ready):
            while (outbox := self._of.get(request)) is not None and outbox.pending:
                if outbox.claimed if requests is None else request not in requests:
                    break
                event = outbox.events[outbox.num_taken]
                if event.finished is not None:
                    del self._of[request]
                outbox.num_taken += 1  # directly before the yield, so that no signal can come in between
                yield event
            else:
                self._ready.pop(request, None)
