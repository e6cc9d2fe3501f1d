"""The thread that owns the engines, and the way to it from the event loop.

One thread uses an engine at a time, so one thread steps all of them. Handlers never touch an engine: they `submit` and
`cancel` through a queue that is safe between threads, and updates come back by `loop.call_soon_threadsafe`.

    event loop    submit -> inbox          ticket.updates <- update
    worker        inbox -> lane.add, lane.advance, lane.advance, ... -> send

A request that the engines have not finished counts as open, also after its client has left. So many as fit in the slots
and the queue may be open; one more is refused with status 503.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import final

from outrider.errors import OutriderError
from outrider.serve.engines.lane import Lane, Send
from outrider.serve.engines.ticket import Asked, Failure, Ticket, Update
from outrider.serve.failures import RefusalError

__all__ = ["Worker"]

log = logging.getLogger(__name__)

RETRY_S = 1
"""Seconds after which a refused client may try again."""
STOP_S = 5.0
"""Seconds that the end of the thread may take: a step that hangs does not keep the process."""
MOST_FAILURES = 3
"""Failed steps in a row after which the server calls itself ill."""
MOST_LANES = 3
"""Engines that are open at the same time; of more, one that has been idle is closed."""


@final
class Worker:
    """Steps the engines while requests are open.

    Args:
        lanes: functions that open the engines, by label.
        capacity: the most open requests.
    """

    def __init__(self, lanes: Mapping[str, Callable[[Send], Lane]], capacity: int) -> None:
        self.capacity = capacity
        self.open: set[Ticket] = set()
        self.is_draining = False
        self.num_failures = 0
        self._openers = lanes
        self._lanes: dict[str, Lane] = {}
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="outrider-engine", daemon=True)

    def open_lane(self, label: str) -> Lane:
        """Return the engine with a label; open it if it is not. The first one stays open."""
        if label not in self._lanes:
            idle = [one for one in list(self._lanes)[1:] if not self._lanes[one].busy]
            for one in idle[: max(0, len(self._lanes) + 1 - MOST_LANES)]:
                del self._lanes[one]
            self._lanes[label] = self._openers[label](self._send)
        return self._lanes[label]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; updates go to this loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step."""
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_well(self) -> bool:
        """True while requests can be expected to succeed."""
        return self.is_alive and not self.is_draining and self.num_failures < MOST_FAILURES

    @property
    def num_running(self) -> int:
        return sum(len(lane.engine.batch.running) for lane in list(self._lanes.values()))

    @property
    def num_waiting(self) -> int:
        return max(0, len(self.open) - self.num_running)

    @property
    def is_full(self) -> bool:
        """True while no request is taken."""
        return self.is_draining or not self.is_alive or len(self.open) >= self.capacity

    @property
    def busy(self) -> RefusalError:
        """The refusal of a request that cannot be taken now."""
        if self.is_draining or not self.is_alive:
            return RefusalError("the server is stopping; try again later", 503, retry_s=RETRY_S)
        return RefusalError(f"{self.capacity} requests run or wait; try again later", 503, retry_s=RETRY_S)

    def submit(self, asked: Asked, updates: "asyncio.Queue[tuple[Ticket, Update]]") -> Ticket:
        """Send a request to its engine.

        Raises:
            RefusalError: with status 503 if the queue is full or the server stops.
        """
        if self.is_full:
            raise self.busy
        ticket = Ticket(asked, updates)
        self.open.add(ticket)
        self._idle.clear()
        self._inbox.put(lambda: self._add(ticket))
        return ticket

    def cancel(self, ticket: Ticket, failure: Failure | None = None) -> None:
        """End a request that may still be open; its ticket gets the failure, or a cancelled event."""
        if ticket in self.open:
            self._inbox.put(lambda: self._cancel(ticket, failure))

    async def drain(self, grace_s: float) -> None:
        """Take no more requests, and wait until the open ones have ended; after the grace time, end them."""
        self.is_draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._until_idle(), grace_s)
        for ticket in list(self.open):
            self.cancel(ticket, Failure("the server stopped before the answer was finished", 503))
        await self._until_idle()

    async def _until_idle(self) -> None:
        while self.open and self.is_alive:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), 1.0)

    def _run(self) -> None:
        try:
            self._step_lanes()
        finally:
            with suppress(RuntimeError):  # the loop has ended, and every handler with it
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._end)

    def _step_lanes(self) -> None:
        while True:
            busy = [lane for lane in self._lanes.values() if lane.busy]
            if not self._read(wait=not busy):
                return
            for lane in busy:
                try:
                    lane.advance()
                    self.num_failures = 0
                except BaseException as error:  # no signal comes to this thread, so it is a failure of any type
                    self.num_failures += 1
                    lane.fail(error)

    def _end(self) -> None:
        """Tell every open ticket that the thread has ended."""
        for ticket in list(self.open):
            self._deliver(ticket, Failure("the engine has ended", 500))

    def _read(self, *, wait: bool) -> bool:
        """Do what the inbox says; return False at its end."""
        while True:
            try:
                work = self._inbox.get(block=wait)
            except Empty:
                return True
            if work is None:
                return False
            work()
            wait = False

    def _add(self, ticket: Ticket) -> None:
        try:
            lane = self.open_lane(ticket.asked.method)
            lane.add(ticket)
        except OutriderError as error:
            self._send(ticket, Failure(str(error), 503))
        except BaseException as error:
            log.exception("a request cannot be taken")
            self._send(ticket, Failure(f"the engine failed ({type(error).__name__})", 500))

    def _cancel(self, ticket: Ticket, failure: Failure | None) -> None:
        lane = self._lanes.get(ticket.asked.method)
        if lane is not None:
            try:
                lane.cancel(ticket, failure)
            except BaseException as error:
                lane.fail(error)

    def _send(self, ticket: Ticket, update: Update) -> None:
        """Give an update to a ticket, from the worker's thread."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has ended, and every handler with it
            self._loop.call_soon_threadsafe(self._deliver, ticket, update)

    def _deliver(self, ticket: Ticket, update: Update) -> None:
        ended = isinstance(update, Failure) or (update.event is not None and update.event.finished is not None)
        if ended:
            self.open.discard(ticket)
            if not self.open:
                self._idle.set()
        ticket.updates.put_nowait((ticket, update))
