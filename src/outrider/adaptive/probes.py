"""Drafts on trial while drafting is off: single probes at a bounded share of the time, and explored requests.

**Single probes.** After one that cost x plain steps in vain, the next waits x / share steps. One that must first read
pending tokens for more than `free` plain steps also waits until steps without a draft have saved up the rest.

**Explorations.** A single probe shows one token and costs more than a draft in a row. So now and then a new request is
explored: its prompt is read if that takes at most `MOST_READ` of the time that the request is expected to take, and up
to `NUM_PROBES` drafts in a row follow, until wrong ones have cost `MOST_LOST` plain steps. After an exploration in vain
the next `wait` requests are not, and `wait` doubles; one that leads to drafting halves it.

Worked example: a probe costs 0.14 plain steps in vain; at a share of 0.7 % the next one waits 20 steps. A plain step
takes 5 ms and 200 tokens are expected: a prompt that takes up to 40 ms to read may be explored.
"""

from collections.abc import Sequence
from typing import Final, final

__all__ = ["NOT_NOW", "NUM_PROBES", "Exploration", "ProbeTimer"]

NUM_PROBES: Final = 6
MOST_LOST: Final = 2.0
MOST_READ: Final = 0.04
LONGEST_WAIT: Final = 64
MAX_WAIT: Final = 512
"""Most steps between probes."""
NOT_NOW: Final = 16
"""Fewest steps until a probe that was too costly is considered again."""


@final
class ProbeTimer:
    """A countdown to the next single probe.

    Args:
        share: share of the time that probes in vain may take.
        free: plain steps of reading that need not be saved up.
    """

    def __init__(self, share: float, free: float) -> None:
        self.share = share
        self.free = free
        self.steps = 0.0
        self._num_undrafted = 0
        self._waited = 0.0

    @property
    def is_due(self) -> bool:
        return self.steps < 1

    def pass_step(self, drafted: bool) -> None:
        """Count one step."""
        self.steps = max(0.0, self.steps - 1)
        self._num_undrafted = 0 if drafted else self._num_undrafted + 1

    def affords(self, read: float) -> bool:
        """Return whether a probe may read pending tokens for this many plain steps; if not, wait."""
        missing = (read - self.free) / self.share - max(0.0, self._num_undrafted - self._waited)
        if missing > 0:
            self.postpone(missing)
        return missing <= 0

    def postpone(self, num_steps: float) -> None:
        """Set the wait for the next probe to about as many steps."""
        self.steps = max(NOT_NOW, min(MAX_WAIT, num_steps))

    def spend(self, lost: float, read: float) -> None:
        """Wait for what a probe cost in vain, in plain steps; reading beyond `free` was saved up before."""
        self.steps = self._waited = min(MAX_WAIT, max(0.0, min(read, self.free) + lost) / self.share)


@final
class Exploration:
    """The request that is explored, and the wait for the next one."""

    def __init__(self) -> None:
        self.request: int | None = None
        """The request that is explored, or that will be if its prompt takes little to read."""
        self.begun = False
        """True once its prompt was found to take little."""
        self._num_left = 0
        self._lost = 0.0
        self._wait = 1
        self._num_to_wait = 0

    def admit(self, new: Sequence[int], running: Sequence[int]) -> None:
        """Take the first of the new requests if an exploration is due, and leave a request that has ended."""
        if self.request is not None and self.request not in running:
            self.end(len(running))
        for request in new:
            if self._num_to_wait:
                self._num_to_wait -= 1
            elif self.request is None:
                self.request = request

    def begin(self, read_share: float, pays: bool) -> None:
        """Begin if drafts may pay at all and reading takes at most `MOST_READ` of the request's time; else leave it."""
        if pays and read_share <= MOST_READ:
            self.begun, self._num_left, self._lost = True, NUM_PROBES, 0.0
        else:
            self.leave()

    def spend(self, lost: float, num_slots: int) -> None:
        """Count a probe that cost this many plain steps in vain."""
        self._num_left -= 1
        self._lost += max(0.0, lost)
        if self._num_left <= 0 or self._lost >= MOST_LOST:
            self.end(num_slots)

    def pay(self) -> None:
        """End an exploration that led to drafting."""
        if self.begun:
            self._wait = max(1, self._wait // 2)
        self.leave()

    def end(self, num_slots: int) -> None:
        """End an exploration in vain; in a batch, where all wait, more requests pass until the next."""
        if self.begun:
            self._num_to_wait = self._wait * num_slots
            self._wait = min(LONGEST_WAIT, 2 * self._wait)
        self.leave()

    def leave(self) -> None:
        """End without a result."""
        self.request, self.begun = None, False
