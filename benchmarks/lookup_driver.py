"""The part of `lookup.py` that both interpreters run: token streams, the timed loop, and the other implementation.

As a script it serves the arctic-inference suffix cache over stdin and stdout, one JSON document a line, so that
`lookup.py` can alternate between the two on the same streams. It needs numpy and arctic-inference, not outrider.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 50_000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The token streams; the same seed gives the same ones in every process."""

    seed: int = 0
    depth: int = 24
    response_tokens: int = 200
    steps: int = 150
    max_spec_tokens: int = 24
    min_token_prob: float = 0.1


class Drafts(NamedTuple):
    """One step's draft: tokens, parents and score."""

    tokens: list[int]
    parents: list[int]
    score: float


class Cache(Protocol):
    """The index that is measured, under one set of names."""

    def open(self, name: int, prompt: NDArray[np.int32]) -> None: ...
    def append(self, name: int, tokens: list[int]) -> None: ...
    def draft(self, name: int, context: NDArray[np.int32], tree: bool) -> Drafts: ...
    def close(self, name: int) -> None: ...
    def memory(self) -> int: ...


@dataclass
class Trace:
    """The measurements of one request: microseconds, drafts per step, accepted tokens per step in path mode."""

    open_us: float = 0.0
    append_us: list[float] = field(default_factory=list)
    draft_us: list[float] = field(default_factory=list)
    path: list[Drafts] = field(default_factory=list)
    tree: list[Drafts] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


class Streams:
    """Documents that repeat themselves and each other: shared phrases, copied spans, Zipfian noise, rare edits."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        weights = 1.0 / np.arange(1, VOCABULARY + 1) ** 1.05
        self._cumulative = np.cumsum(weights / weights.sum())
        self._phrases = [self._noise(int(self._rng.integers(4, 60))) for _ in range(400)]

    def _noise(self, count: int) -> list[int]:
        return np.searchsorted(self._cumulative, self._rng.random(count)).clip(max=VOCABULARY - 1).tolist()

    def document(self, length: int) -> NDArray[np.int32]:
        """Draw `length` tokens: 45 % phrases, 25 % copies of the document's own past, 30 % noise; 2 % edited."""
        tokens: list[int] = []
        while len(tokens) < length:
            kind = self._rng.random()
            if kind < 0.25 and len(tokens) > 50:
                start = int(self._rng.integers(0, len(tokens) - 20))
                tokens += tokens[start : start + int(self._rng.integers(6, 80))]
            elif kind < 0.6:
                phrase = self._phrases[min(int(self._rng.zipf(1.3)), len(self._phrases)) - 1]
                tokens += phrase[int(self._rng.integers(0, 3)) :]
            else:
                tokens += self._noise(int(self._rng.integers(3, 20)))
        out = np.array(tokens[:length], np.int32)
        edited = self._rng.random(length) < 0.02
        out[edited] = self._noise(int(edited.sum()))
        return out


class Plan:
    """The cached responses, and per measured request its prompt, continuation and the tokens committed at each step."""

    def __init__(self, work: Workload, context: int, cached: int, requests: int) -> None:
        streams, rng = Streams(work.seed), np.random.default_rng(work.seed + 1)
        low, high = work.response_tokens // 2, work.response_tokens * 3 // 2
        self.responses = [streams.document(int(rng.integers(low, high + 1))) for _ in range(cached)]
        self.strides = rng.integers(1, 5, (requests, work.steps))
        self.context = context
        margin = work.max_spec_tokens
        self.documents = [streams.document(context + int(strides.sum()) + margin) for strides in self.strides]


def prime(cache: Cache, plan: Plan) -> float:
    """Fill the cache; return microseconds per token."""
    tokens = [response.tolist() for response in plan.responses]
    begin = time.perf_counter()
    for number, response in enumerate(tokens):
        cache.open(-1 - number, np.array([0], np.int32))
        cache.append(-1 - number, response)
        cache.close(-1 - number)
    return (time.perf_counter() - begin) * 1e6 / max(1, sum(map(len, tokens)))


def drive(cache: Cache, plan: Plan, name: int) -> Trace:
    """Serve request number `name`: open, then per step append what was committed and draft."""
    trace, document, end = Trace(), plan.documents[name], plan.context
    begin = time.perf_counter()
    cache.open(name, document[:end].copy())
    trace.open_us = (time.perf_counter() - begin) * 1e6
    for stride in plan.strides[name].tolist():
        tokens = document[end : end + stride].tolist()
        end += stride
        context = document[:end]
        begin = time.perf_counter()
        cache.append(name, tokens)
        middle = time.perf_counter()
        draft = cache.draft(name, context, False)
        after = time.perf_counter()
        trace.append_us.append((middle - begin) * 1e6)
        trace.draft_us.append((after - middle) * 1e6)
        trace.path.append(draft)
        trace.tree.append(cache.draft(name, context, True))
        wrong = np.nonzero(document[end : end + len(draft.tokens)] != draft.tokens)[0]
        trace.accepted.append(int(wrong[0]) if len(wrong) else len(draft.tokens))
    cache.close(name)
    return trace


class ArcticCache:
    """arctic-inference's SuffixDecodingCache under our names; it is given the last `depth` tokens as vLLM does."""

    def __init__(self, work: Workload, cached: int) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._work = work
        self._cache = SuffixDecodingCache(max_tree_depth=work.depth, max_cached_requests=cached)

    def open(self, name: int, prompt: NDArray[np.int32]) -> None:
        self._cache.start_request(name, prompt)

    def append(self, name: int, tokens: list[int]) -> None:
        self._cache.add_active_response(name, tokens)

    def draft(self, name: int, context: NDArray[np.int32], tree: bool) -> Drafts:
        found = self._cache.speculate(
            name,
            context[-self._work.depth :],
            max_spec_tokens=self._work.max_spec_tokens,
            min_token_prob=self._work.min_token_prob,
            use_tree_spec=tree,
        )
        return Drafts(list(found.token_ids), list(found.parents), found.score)

    def close(self, name: int) -> None:
        self._cache.stop_request(name)

    def memory(self) -> int:
        return int(self._cache._global_tree.estimate_memory())


def serve() -> None:
    """Answer `{"prime": ...}` and `{"request": n}` lines until the input ends."""
    cache: ArcticCache
    plan: Plan
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        if "prime" in order:
            given = order["prime"]
            work = Workload(**given["work"])
            plan = Plan(work, given["context"], given["cached"], given["requests"])
            cache = ArcticCache(work, given["cached"])
            answer = {"prime_us": prime(cache, plan), "memory": cache.memory()}
        else:
            answer = asdict(drive(cache, plan, order["request"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
