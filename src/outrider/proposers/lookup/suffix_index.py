"""Suffix index: counts of what followed the end of a context before, in its request and in earlier responses.

`SuffixCache` serves requests with two kinds of counted suffix tree (SuffixDecoding, 2411.04975; the semantics of Arctic
Inference):

- a local tree per open request, over its prompt and its own response so far;
- one global tree over responses only, added as they are produced, kept after their requests close, and evicted first in
  first out beyond `max_cached_requests` (0: no global tree, -1: no limit).

A corpus on disk may come third. All are searched at each step; the draft with the higher score, the expected number of
accepted tokens, wins; on a tie the local one, then the global one. `suffix_draft` describes the drafting, `suffix_edit`
the counting, `suffix_nodes` the memory, `proposers/corpus` the files.

Worked example:

>>> cache = SuffixCache(max_depth=8)
>>> cache.open("r", [5, 6, 7, 8, 5, 6])
>>> cache.speculate("r", max_spec_tokens=4, min_token_prob=0.5).tokens.tolist()
[7, 8]

The last two tokens `5 6` occurred twice, once followed by `7 8 5 6`, which has probability 1/2; a match of two tokens
allows a draft of two (factor 1); the score is 1.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from outrider.errors import ConfigError, RequestError
from outrider.kernels.compiled import Int32Array, as_tokens
from outrider.proposers.lookup.suffix_nodes import BLOCK
from outrider.proposers.lookup.suffix_tree import NO_SEQUENCE, NO_TOKENS, Mode, Speculation, SuffixTree

__all__ = ["FixedIndex", "Mode", "Speculation", "SuffixCache", "SuffixTree"]


@dataclass(slots=True)
class _Request:
    """An open request: its local tree and its sequence there, and its sequence in the global tree."""

    local: SuffixTree
    local_sequence: int
    global_sequence: int
    length: int
    response_length: int


class FixedIndex(Protocol):
    """Counts of strings in texts that do not change, as `outrider.proposers.corpus.index` keeps them on disk."""

    def speculate(
        self,
        context: Int32Array,
        max_spec_tokens: int,
        factor: float,
        offset: float,
        min_token_prob: float,
        mode: Mode,
        *,
        max_match: int,
        floor: float,
    ) -> Speculation:
        """Draft the likeliest continuation of `context`; empty if its score is not above `floor`."""


@final
class SuffixCache:
    """Suffix decoding for many requests: local trees, a global tree of cached responses, and a corpus on disk.

    `max_depth` caps match and draft together (24 in vLLM); the corpus has its own cap, and its matches have this one. A
    request is any hashable name; it may come again after `close`, and its earlier response is then evicted.
    """

    def __init__(
        self, max_depth: int = 24, max_cached_requests: int = 10_000, corpus: FixedIndex | None = None
    ) -> None:
        if max_cached_requests < -1:
            raise ConfigError(
                f"max_cached_requests {max_cached_requests} is out of range; use -1 (no limit), 0 or more"
            )
        self._max_cached_requests = max_cached_requests
        self._corpus = corpus
        self._global = SuffixTree(max_depth, reserve=1 << 16 if max_cached_requests else BLOCK)
        self._open: dict[Hashable, _Request] = {}
        self._cached: dict[Hashable, int] = {}

    @property
    def open_requests(self) -> tuple[Hashable, ...]:
        """Requests opened and not closed, oldest first."""
        return tuple(self._open)

    @property
    def cached_requests(self) -> tuple[Hashable, ...]:
        """Requests whose response is in the global tree, the next to be evicted first."""
        return tuple(self._cached)

    @property
    def memory_bytes(self) -> int:
        """Bytes in use by the global tree and all local trees."""
        return self._global.memory_bytes + sum(request.local.memory_bytes for request in self._open.values())

    def open(self, request: Hashable, prompt_tokens: Sequence[int] | Int32Array) -> None:
        """Begin a request: index its prompt and give its response a place in the global tree, evicting the oldest.

        Raises:
            RequestError: if it is open already.
        """
        if request in self._open:
            raise RequestError(f"request {request!r} is already open; close it first")
        prompt = as_tokens(prompt_tokens)
        local = SuffixTree(self._global.max_depth, reserve=2 * len(prompt) + 1024)
        sequence = local.open()
        local.extend(sequence, prompt)
        self._open[request] = _Request(local, sequence, self._admit(request), len(prompt), 0)

    def append(self, request: Hashable, tokens: Sequence[int] | Int32Array) -> None:
        """Append produced tokens to the response: in the local tree and, unless evicted, in the global one."""
        state = self._state(request)
        new = as_tokens(tokens)
        state.local.extend(state.local_sequence, new)
        state.length += len(new)
        state.response_length += len(new)
        if state.global_sequence != NO_SEQUENCE:
            self._global.extend(state.global_sequence, new)

    def speculate(
        self,
        request: Hashable,
        max_spec_tokens: int = 24,
        factor: float = 1.0,
        offset: float = 0.0,
        min_token_prob: float = 0.1,
        mode: Mode = "path",
    ) -> Speculation:
        """Return the draft with the highest score after the request's context: local, global, or of the corpus."""
        state = self._state(request)
        settings = (max_spec_tokens, factor, offset, min_token_prob, mode)
        best = state.local.speculate(NO_TOKENS, *settings, sequence=state.local_sequence, context_length=state.length)
        context = NO_TOKENS
        if self._global.num_tokens:
            own = state.global_sequence
            # The global tree holds responses alone; a match that may reach into the prompt needs the context.
            covered = own != NO_SEQUENCE and state.response_length >= min(self._global.max_depth, state.length) - 1
            context = NO_TOKENS if covered else state.local.tail(state.local_sequence)
            found = self._global.speculate(
                context, *settings, sequence=own, context_length=state.length, floor=best.score
            )
            best = found if len(found.tokens) else best
        if self._corpus is not None:
            context = context if len(context) else state.local.tail(state.local_sequence)
            most = min(state.length, self._global.max_depth) - 1
            found = self._corpus.speculate(context, *settings, max_match=most, floor=best.score)
            best = found if len(found.tokens) else best
        return best

    def close(self, request: Hashable) -> None:
        """End a request: free its local tree; its response stays cached until it is evicted."""
        self._state(request)
        del self._open[request]

    def evict(self, request: Hashable) -> None:
        """Remove the request's response from the global tree.

        Raises:
            RequestError: if it is not cached.
        """
        if request not in self._cached:
            raise RequestError(f"request {request!r} has no cached response; it was never opened or is already evicted")
        self._global.remove(self._cached.pop(request))
        if request in self._open:
            self._open[request].global_sequence = NO_SEQUENCE

    def clear(self) -> None:
        """Forget all cached responses; open requests continue with their local trees alone."""
        self._global.clear()
        self._cached.clear()
        for state in self._open.values():
            state.global_sequence = NO_SEQUENCE

    def _admit(self, request: Hashable) -> int:
        if self._max_cached_requests == 0:
            return NO_SEQUENCE
        if request in self._cached:
            self.evict(request)
        # A dict keeps its order of insertion: the first is the oldest.
        while len(self._cached) >= self._max_cached_requests > 0:
            self.evict(next(iter(self._cached)))
        self._cached[request] = self._global.open()
        return self._cached[request]

    def _state(self, request: Hashable) -> _Request:
        if request not in self._open:
            raise RequestError(f"request {request!r} is not open; open it with its prompt first")
        return self._open[request]
