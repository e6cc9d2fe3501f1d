"""A request on its way through the server: what was asked, and the updates that come back.

Handlers run in the event loop, engines in the worker's thread. A `Ticket` is the handler's end: its `updates` come
through a queue of the loop. The first update says that the engine took the request, or why not; the last one has an
event that is `finished`, or is a `Failure`.

Example: Update(), Update(event=Event("The")), Update(event=Event(" cat.", finished="eos")).
"""

import asyncio
from dataclasses import dataclass
from typing import final

from outrider.requests.events import Event
from outrider.sampling import SamplingParams
from outrider.traces.watch import WatchedStep

__all__ = ["Asked", "Failure", "Ticket", "Update"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One prompt for an engine.

    method       label of the engine that serves it
    most_nodes   upper limit of nodes per step; None for the engine's own
    is_traced    True if the handler wants the draft of each step
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    method: str
    most_nodes: int | None = None
    is_traced: bool = False


@dataclass(frozen=True, kw_only=True)
class Update:
    """News of a request; without an event, that the engine took it."""

    event: Event | None = None
    trace: WatchedStep | None = None


@final
@dataclass(frozen=True)
class Failure(Update):
    """The end of a request that cannot be served.

    message   one sentence
    status    HTTP status
    """

    message: str
    status: int

    @classmethod
    def of(cls, event: Event) -> "Failure | None":
        """Return the failure that an event tells of."""
        return cls(event.error, 500) if event.error is not None else None


@final
@dataclass(eq=False)
class Ticket:
    """The handler's end of a request; requests of one body share the queue."""

    asked: Asked
    updates: "asyncio.Queue[tuple[Ticket, Update]]"
