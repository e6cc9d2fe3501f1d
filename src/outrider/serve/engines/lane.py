"""One engine of a server, with what the server must know of its requests.

A lane belongs to the worker's thread. `add` places a ticket, `advance` steps once and hands each event to its ticket,
`fail` ends what a broken step was about and leaves the rest waiting.

Example: after an exception in a step of requests 3 and 4, with 5 waiting, `fail` ends 3 and 4; 5 is served.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import final

from outrider.budget import load_budget
from outrider.engine import Engine, Recorder
from outrider.errors import RequestError, on_one_line, said
from outrider.loop.free_memory import is_out_of_memory
from outrider.proposer import Proposer
from outrider.requests.events import Event
from outrider.serve.config import ServeConfig
from outrider.serve.engines.caps import CappedBudget
from outrider.serve.engines.ticket import Failure, Ticket, Update
from outrider.target import Target
from outrider.traces.watch import Watch

__all__ = ["Lane", "open_engine"]

log = logging.getLogger(__name__)

Send = Callable[[Ticket, Update], None]


def open_engine(
    target: Target, proposer: Proposer, config: ServeConfig, budget: str, caps: Mapping[int, int], record: Recorder
) -> Engine:
    """Open an engine; `caps` limit the nodes of requests, by id."""
    inner = load_budget(budget, target, proposer.spec.max_nodes)
    return Engine(
        target,
        proposer,
        max_batch=config.max_batch,
        max_len=min(config.max_len, target.spec.max_positions),
        prefix_cache_bytes=config.prefix_cache_bytes,
        prefill_chunk=config.prefill_chunk,
        verification=config.verification,
        budget=CappedBudget(inner, caps),
        record=record,
    )


@final
class Lane:
    """An engine and its tickets.

    Args:
        open: function that opens the engine, given caps of nodes by request and `record`; called again if the engine
            cannot be mended.
        record: callback for every step and prefill record.
        send: function that hands an update to a ticket.
    """

    def __init__(self, open: Callable[[Mapping[int, int], Recorder], Engine], record: Recorder, send: Send) -> None:
        self._open = open
        self._record = record
        self._send = send
        self._start()

    def _start(self) -> None:
        self.tickets: dict[int, Ticket] = {}
        caps: dict[int, int] = {}
        self.engine = self._open(caps, self._record)
        self.watch, self.caps = Watch(self.engine), caps

    @property
    def busy(self) -> bool:
        """True while a request runs or waits."""
        return bool(self.tickets)

    def add(self, ticket: Ticket) -> None:
        """Add a request, and tell its ticket that it is taken, or why not."""
        try:
            id = self.engine.add(list(ticket.asked.prompt), ticket.asked.params)
        except RequestError as error:
            self._send(ticket, Failure(str(error), 400))
            return
        self.tickets[id] = ticket
        if ticket.asked.most_nodes is not None:
            self.caps[id] = ticket.asked.most_nodes
        if ticket.asked.is_traced:
            self.watch.traced.add(id)
        self._send(ticket, Update())

    def cancel(self, ticket: Ticket, failure: Failure | None = None) -> None:
        """End a request, if it is here."""
        for id in [id for id, one in self.tickets.items() if one is ticket]:
            self.engine.cancel(id)
            self._forget(id)
            self._send(ticket, failure or Update(event=Event(request=id, finished="cancelled")))

    def advance(self) -> None:
        """Step once and hand out the events."""
        self.watch.begin()
        self.engine.advance()
        for event in self.engine.take():
            ticket = self.tickets[event.request]
            trace = self.watch.step_of(event)
            if event.finished is not None:
                self._forget(event.request)
            self._send(ticket, Failure.of(event) or Update(event=event, trace=trace))

    def fail(self, error: BaseException) -> None:
        """End the requests of a step that failed: all but those that were not yet due."""
        log.error("a step failed: %s", on_one_line(str(error)), exc_info=error)
        if is_out_of_memory(error):
            plan = self.engine.memory
            failure = Failure(f"memory ended in a step ({plan}); send shorter prompts, or {plan.remedy}", 503)
        else:
            failure = Failure(f"the engine failed in a step ({said(error)})", 500)
        try:
            for id in list(self._due()):
                self.cancel(self.tickets[id], failure)
        except BaseException:
            log.exception("the engine cannot be mended and is opened anew")
            for ticket in self.tickets.values():
                self._send(ticket, failure)
            self._start_anew()

    def _start_anew(self) -> None:
        try:
            self._start()
        except BaseException:
            log.exception("the engine cannot be opened anew; the next request tries the old one")
            self.engine.reset()  # it is unsound, so nobody else is asked

    def _due(self) -> Iterator[int]:
        later = [request.id for request in self.engine.waiting][len(self.engine.batch.free_slots()) :]
        return (id for id in list(self.tickets) if id not in later)

    def _forget(self, id: int) -> None:
        del self.tickets[id]
        self.caps.pop(id, None)
        self.watch.traced.discard(id)
