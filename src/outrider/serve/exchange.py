"""One HTTP request at the engines: a ticket for each of its prompts, and their updates in one stream.

`begin` returns when the engines have taken all prompts, so that a refusal still has a status of its own. Iterating
gives the events as they come. `close` cancels what is left; it is safe at any time and more than once.

Example: two prompts whose answers alternate give (0, "The"), (1, "A"), (0, " cat"), ...
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, final

from outrider.requests.events import Event
from outrider.serve.engines.ticket import Asked, Failure, Ticket, Update
from outrider.serve.engines.worker import Worker
from outrider.serve.failures import RefusalError
from outrider.traces.watch import WatchedStep

__all__ = ["Exchange", "Step"]


class Step(NamedTuple):
    """Tokens for one prompt, by its number; the trace if it was asked for."""

    number: int
    event: Event
    trace: WatchedStep | None


@final
class Exchange:
    """The prompts of one request on their way."""

    def __init__(self, worker: Worker, asked: Sequence[Asked]) -> None:
        self._worker = worker
        self._asked = list(asked)
        self._updates: asyncio.Queue[tuple[Ticket, Update]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._early: list[Step] = []

    async def begin(self) -> None:
        """Submit the prompts, and wait until all are taken.

        Raises:
            RefusalError: if one of them is not; the others are cancelled.
        """
        try:
            for asked in self._asked:
                self._tickets.append(self._worker.submit(asked, self._updates))
            num_taken = 0
            while num_taken < len(self._tickets):
                step = self._read(*await self._updates.get())
                if step is None:
                    num_taken += 1
                else:
                    self._early.append(step)
        except BaseException:
            self.close()
            raise

    async def steps(self) -> AsyncIterator[Step]:
        """Yield the events of all prompts, to the last.

        Raises:
            RefusalError: if the engine fails, or the server stops.
        """
        num_open = len(self._tickets)
        while num_open:
            step = self._early.pop(0) if self._early else self._read(*await self._updates.get())
            if step is not None:
                num_open -= step.event.finished is not None
                yield step

    def close(self) -> None:
        """Stop what is left."""
        for ticket in self._tickets:
            self._worker.cancel(ticket)

    def _read(self, ticket: Ticket, update: Update) -> Step | None:
        if isinstance(update, Failure):
            raise RefusalError(update.message, update.status)
        if update.event is None:
            return None
        return Step(self._tickets.index(ticket), update.event, update.trace)
