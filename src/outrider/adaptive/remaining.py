"""Tokens that a request will still emit, learned from the answers that have ended.

A request may emit up to its limit, and most end earlier. With e tokens emitted, the expectation is the mean of L - e
over the lengths L of recent answers that were longer than e, and of `TYPICAL`, so that one short answer does not speak
for all. Never more than the limit leaves.

Worked example: answers of 20, 60 and 100 tokens have ended. A request that has emitted 40 will emit another (20 + 60 +
128) / 3 = 69.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, final

__all__ = ["Remaining"]

TYPICAL: Final = 128
RECENT: Final = 32


@final
class Remaining:
    """Tokens emitted by the running requests, and lengths of recent answers."""

    def __init__(self) -> None:
        self._emitted: dict[int, int] = {}
        self._lengths: deque[int] = deque(maxlen=RECENT)

    def admit(self, requests: Iterable[int]) -> None:
        """Set the running requests; those that are gone have ended."""
        emitted = self._emitted
        self._emitted = {request: emitted.pop(request, 0) for request in requests}
        self._lengths.extend(emitted.values())

    def emitted(self, request: int, num_tokens: int) -> None:
        """Count emitted tokens."""
        self._emitted[request] += num_tokens

    def expected(self, request: int, most: int) -> float:
        """Return the tokens that a request will probably emit, at most `most`."""
        emitted = self._emitted[request]
        longer = [length - emitted for length in self._lengths if length > emitted]
        return min(most, (TYPICAL + sum(longer)) / (1 + len(longer)))

    def reset(self) -> None:
        """Forget all requests and answers."""
        self._emitted = {}
        self._lengths.clear()
