"""How far ahead of plain decoding each request is, in plain steps, and so what drafting may cost it.

Plain decoding emits one token of a request per step. A step that takes as long as s plain ones and emits t tokens of
the request puts it t - s plain steps ahead, or behind. That is booked in its balance, which begins at 0, gets `refill`
in every step, holds at most `most`, and may be overdrawn by `credit`.

**The bound.** A step is taken with a draft only if every owner can bear the worst, which is that all of it is wrong:
s - 1 <= balance + credit. Every step emits a token, so t >= 1 and no balance falls below -credit. Hence a request of n
tokens ends after at most

    n + credit + refill * n

plain steps, whatever the texts do. (Drafts that are made to learn what drafting costs, and probes, are booked too,
but not refused; see `adaptive/controller.py`.)

Who pays: while a request waits for a slot, all that run have one balance, `TOGETHER`, with t the mean over the slots;
otherwise every request has its own.

Worked example: credit 1, refill 0. Steps of 1.5 plain ones emit 2, 1, 1 tokens: the balance is 0.5, 0.0, -0.5. A
fourth step may take 1.5 at most; if it emits one token, the request is one plain step behind, and decodes plainly from
there on.
"""

from collections.abc import Iterable
from typing import Final, final

__all__ = ["TOGETHER", "Owner", "SlowdownBudget"]

Owner = int | None
TOGETHER: Final[Owner] = None
"""The owner that stands for all requests."""


@final
class SlowdownBudget:
    """Balances in plain steps, by request."""

    def __init__(self, *, refill: float, credit: float, most: float) -> None:
        self.refill = refill
        self.credit = credit
        self.most = most
        self._earned = 0.0
        self._won: dict[Owner, float] = {TOGETHER: 0.0}
        """Balances less what every balance has earned by now, so that a step without a draft is one addition."""

    def admit(self, requests: Iterable[int]) -> None:
        """These requests run now; new ones get a balance, those of the others are closed."""
        together = self._won[TOGETHER]
        self._won = {request: self._won.get(request, -self._earned) for request in requests}
        self._won[TOGETHER] = together

    def pass_step(self) -> None:
        """Every balance gets its refill."""
        self._earned += self.refill

    def book(self, owner: Owner, won: float) -> None:
        """What a step won or, below 0, lost."""
        self._won[owner] = self.balance(owner) + won - self._earned

    def balance(self, owner: Owner) -> float:
        """Plain steps ahead."""
        return min(self.most, self._won[owner] + self._earned)

    def burst(self, owners: Iterable[Owner]) -> float:
        """Plain steps that each of them could lose."""
        return min(map(self.balance, owners)) + self.credit

    def reset(self) -> None:
        """Close all; the one balance of all begins at 0 again."""
        self._earned = 0.0
        self._won = {TOGETHER: 0.0}
