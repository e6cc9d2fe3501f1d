"""Texts whose keys and values are kept, so that a later request that begins alike reads only the rest.

A finished text leaves its slot. A copy of its keys and values stays, with what the proposer's session keeps of it. A
new request takes the longest beginning that it shares with any kept text:

    kept     s s s q q a a a a          a system prompt, a question, its answer
    new      s s s q q a a a a q q q    the next turn: 8 positions are copied, 4 tokens read
    other    s s s p p p                another chat: 2 positions are copied, 4 tokens read

The last shared token is read again, since a head reads each token with the feature before it; so is the last token
before the root, whose feature heads draft from.

Texts are sorted, so the one that shares most with a prompt stands beside the place where the prompt would stand. No
kept text is the beginning of another one. What was used longest ago is dropped first when the copies exceed the bound.
A change is one assignment, so an exception leaves the store whole.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from outrider.cache import Cache, CachedText
from outrider.loop.answers import check_kept
from outrider.proposer import Kept, Session

__all__ = ["Match", "Prefix", "PrefixStore"]

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Prefix:
    """A text: its tokens, copies of the keys and values of all but the last, and what the proposer's session kept."""

    tokens: Tokens
    cached: CachedText
    kept: Kept | None

    @property
    def num_bytes(self) -> int:
        return self.cached.num_bytes + (0 if self.kept is None else self.kept.num_bytes)


class Match(NamedTuple):
    """A kept text, and how many of its first positions a prompt can take over."""

    prefix: Prefix
    length: int


class _Held(NamedTuple):
    """Kept texts, used longest ago first, and their tokens in order."""

    prefixes: dict[Tokens, Prefix]
    order: list[Tokens]


@final
class PrefixStore:
    """Kept texts, at most `max_bytes` of copies; with 0, none."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held = _Held({}, [])

    def __len__(self) -> int:
        return len(self._held.prefixes)

    @property
    def texts(self) -> list[Tokens]:
        """The kept texts, used longest ago first."""
        return list(self._held.prefixes)

    @property
    def num_bytes(self) -> int:
        """Memory of the copies, in bytes."""
        return sum(prefix.num_bytes for prefix in self._held.prefixes.values())

    def clear(self) -> None:
        """Forget all texts."""
        self._held = _Held({}, [])

    def keep(
        self, tokens: Sequence[int], slot: int, cache: Cache, session: Session, *, with_features: bool = False
    ) -> None:
        """Copy a text that leaves its slot, before its session releases it, unless more of it is kept already.

        Args:
            tokens: the committed text; the slot holds all of it but the last, or more.
            with_features: as in `find`; a text is not kept whose session keeps nothing of it then.
        """
        text = tuple(tokens)
        if not self.max_bytes or len(text) < 2 or cache.plan.bytes_per_token * (len(text) - 1) > self.max_bytes:
            return
        at = bisect_left(self._held.order, text)
        if at < len(self._held.order) and self._held.order[at][: len(text)] == text:
            self._use(self._held.order[at])
            return
        kept = check_kept(session.keep(slot))
        if with_features and (kept is None or kept.reusable(len(text) - 1) < 1):
            return
        self._add(Prefix(text, cache.copy(slot, len(text) - 1), kept))

    def find(self, prompt: Sequence[int], *, with_features: bool) -> Match | None:
        """Return the kept text that a prompt can take over most of, or None.

        Args:
            with_features: the session needs features of every position that it did not keep.
        """
        text, order = tuple(prompt), self._held.order
        at = bisect_left(order, text)
        shared = {near: _num_shared(near, text) for near in order[max(0, at - 1) : at + 1]}
        if not shared:
            return None
        best = max(shared, key=lambda near: shared[near])
        prefix, length = self._held.prefixes[best], min(shared[best] - 1, len(text) - 2)
        if with_features:
            length = 0 if prefix.kept is None else min(length, prefix.kept.reusable(length))
        if length < 1:
            return None
        self._use(best)
        return Match(prefix, length)

    def _use(self, text: Tokens) -> None:
        """Note that a text is the one used last."""
        prefixes = dict(self._held.prefixes)
        prefixes[text] = prefixes.pop(text)
        self._held = _Held(prefixes, self._held.order)

    def _add(self, prefix: Prefix) -> None:
        """Keep a text; drop its own beginning, and then what was used longest ago, until the rest fits."""
        if prefix.num_bytes > self.max_bytes:
            return
        prefixes, order = dict(self._held.prefixes), list(self._held.order)
        at = bisect_left(order, prefix.tokens)
        if at and prefix.tokens[: len(order[at - 1])] == order[at - 1]:
            at -= 1
            del prefixes[order.pop(at)]
        order.insert(at, prefix.tokens)
        prefixes[prefix.tokens] = prefix
        num_bytes = sum(one.num_bytes for one in prefixes.values())
        while num_bytes > self.max_bytes:
            oldest = next(iter(prefixes))
            num_bytes -= prefixes.pop(oldest).num_bytes
            del order[bisect_left(order, oldest)]
        self._held = _Held(prefixes, order)


def _num_shared(one: Tokens, other: Tokens) -> int:
    """Count the tokens that both begin with.

    >>> _num_shared((1, 2, 3), (1, 2, 9))
    2
    """
    # compared piece by piece, then token by token: whole pieces are compared in C
    count, most = 0, min(len(one), len(other))
    for size in (64, 1):
        while count + size <= most and one[count : count + size] == other[count : count + size]:
            count += size
    return count
