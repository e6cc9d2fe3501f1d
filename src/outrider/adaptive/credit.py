"""The slowdown budget: a token bucket per request, in plain steps, that limits what drafting may cost it.

Plain decoding emits one token of a request per step. A step that takes as long as s plain ones and emits t tokens of
the request puts it t - s plain steps ahead. The difference is booked in its balance, which begins at 0, gets `refill`
in every step, holds at most `max_balance`, and may be overdrawn by `overdraft`.

**The bound.** A draft is verified only if every owner can afford that all of it is wrong: s - 1 <= balance + overdraft.
Every step emits a token, so t >= 1 and no balance falls below -overdraft. A request of n tokens ends after at most

    n + overdraft + refill * n

plain steps, for any text. While a request waits for a slot, all running requests share one balance, `TOGETHER`, with t
the mean over the slots; otherwise every request has its own.

Worked example: overdraft 1, refill 0. Steps of 1.5 plain ones emit 2, 1, 1 tokens: the balance is 0.5, 0.0, -0.5. A
fourth step may take at most 1.5.
"""

from collections.abc import Iterable
from typing import Final, final

__all__ = ["TOGETHER", "Owner", "SlowdownBudget"]

Owner = int | None
TOGETHER: Final[Owner] = None
"""The owner of the balance that all running requests share."""


@final
class SlowdownBudget:
    """Balances in plain steps, by request."""

    def __init__(self, *, refill: float, overdraft: float, max_balance: float) -> None:
        self.refill = refill
        self.overdraft = overdraft
        self.max_balance = max_balance
        self._earned = 0.0
        self._won: dict[Owner, float] = {TOGETHER: 0.0}
        """Balance minus `_earned`, by owner: the refill of all owners is then one addition per step."""

    def admit(self, requests: Iterable[int]) -> None:
        """Open a balance for each new request, and close those of requests that no longer run."""
        together = self._won[TOGETHER]
        self._won = {request: self._won.get(request, -self._earned) for request in requests}
        self._won[TOGETHER] = together

    def pass_step(self) -> None:
        """Add the refill of one step to every balance."""
        self._earned += self.refill

    def book(self, owner: Owner, won: float) -> None:
        """Add to a balance the plain steps that a step won, or lost if negative."""
        self._won[owner] = self.balance(owner) + won - self._earned

    def balance(self, owner: Owner) -> float:
        """Return how many plain steps the owner is ahead of plain decoding."""
        return min(self.max_balance, self._won[owner] + self._earned)

    def burst(self, owners: Iterable[Owner]) -> float:
        """Return the plain steps that each of the owners can still lose."""
        return min(map(self.balance, owners)) + self.overdraft

    def reset(self) -> None:
        """Close all balances; the shared one begins at 0 again."""
        self._earned = 0.0
        self._won = {TOGETHER: 0.0}
