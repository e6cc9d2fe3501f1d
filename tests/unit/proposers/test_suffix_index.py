"""The suffix tree and cache against dictionaries of all strings: counts, shape, order, drafts, eviction, memory."""

from collections import Counter, OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import ConfigError, RequestError
from outrider.proposers.lookup.suffix_index import Speculation, SuffixCache, SuffixTree

Tokens = list[int]
String = tuple[int, ...]


class SlowTree:
    """Every string with its count and the time of its last change, kept by visiting all of them."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth, self.clock = max_depth, 0
        self.sequences: dict[int, Tokens] = {}
        self.count: Counter[String] = Counter()
        self.changed: dict[String, int] = {}

    def _change(self, string: String, by: int) -> None:
        self.clock += 1
        self.count[string] += by
        self.changed[string] = self.clock

    def extend(self, name: int, tokens: Tokens) -> None:
        sequence = self.sequences.setdefault(name, [])
        for token in tokens:
            sequence.append(token)
            for start in range(max(0, len(sequence) - self.max_depth), len(sequence)):
                self._change(tuple(sequence[start:]), 1)

    def remove(self, name: int) -> None:
        sequence = self.sequences.pop(name)
        for start in range(len(sequence)):
            for size in range(1, min(self.max_depth, len(sequence) - start) + 1):
                self._change(tuple(sequence[start : start + size]), -1)

    def children(self, string: String) -> list[String]:
        """What follows, most frequent first and then the one changed last."""
        found = [other for other in +self.count if len(other) == len(string) + 1 and other[:-1] == string]
        return sorted(found, key=lambda other: (-self.count[other], -self.changed[other]))

    def draft(self, string: String, size: int, least: float, mode: str) -> tuple[Tokens, list[int], list[float]]:
        """A draft after `string`: repeatedly the most probable candidate, in path mode of first children only."""
        tokens, parents, probs = [], [], []
        frontier = [(np.float32(1), string, -1)]
        expanded = False
        while frontier and len(tokens) < size:
            prob, node, parent = frontier.pop(frontier.index(max(frontier, key=lambda item: item[0])))
            if expanded:
                tokens.append(node[-1])
                parents.append(parent)
                probs.append(float(prob))
                parent = len(tokens) - 1
            expanded = True
            for child in self.children(node)[: 1 if mode == "path" else None]:
                share = prob * (np.float32(self.count[child]) / np.float32(self.count[node]))
                if mode == "tree" and self.count[child] != self.count[node]:
                    share = prob * np.float32(self.count[child]) / np.float32(self.count[node])
                if share >= np.float32(least):
                    frontier.append((share, child, parent))
        return tokens, parents, probs

    def speculate(
        self, context: Tokens, size: int, factor: float, offset: float, least: float, mode: str
    ) -> Speculation:
        best = Speculation(np.array([]), np.array([]), np.array([]), 0.0, 0)
        context = context[-self.max_depth :]
        for length in range(1, len(context)):
            string = tuple(context[-length:])
            if not self.count[string]:
                break
            bound = min(size, int(length * factor + offset + 1e-6))
            tokens, parents, probs = self.draft(string, bound, least, mode)
            score = np.float32(0)
            for prob in probs:
                score += np.float32(prob)
            if tokens and score >= best.score:
                best = Speculation(np.array(tokens), np.array(parents), np.array(probs), float(score), length)
        return best

    def num_nodes(self) -> int:
        """The root, the strings at which suffixes end, and those with more than one continuation."""
        ends = {
            tuple(sequence[start : start + self.max_depth])
            for sequence in self.sequences.values()
            for start in range(len(sequence))
        }
        return 1 + sum(string in ends or len(self.children(string)) > 1 for string in +self.count)


def assert_same(ours: Speculation, theirs: Speculation) -> None:
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.parents.tolist() == theirs.parents.tolist()
    assert ours.probs.tolist() == theirs.probs.tolist()
    assert (ours.score, ours.match_length) == (theirs.score, theirs.match_length)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=8)
# (which sequence, tokens to append; none removes it)
STEPS = st.lists(st.tuples(st.integers(0, 3), st.one_of(st.just([]), TOKENS, TOKENS, TOKENS)), max_size=12)
LIMITS = st.tuples(
    st.integers(0, 9),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0.0, 0.1, 0.34, 0.5, 1.0]),
    st.sampled_from(["path", "tree"]),
)


def replay(steps: list[tuple[int, Tokens]], max_depth: int) -> tuple[SuffixTree, SlowTree, dict[int, int]]:
    tree, slow, names = SuffixTree(max_depth, reserve=1), SlowTree(max_depth), {}
    for which, tokens in steps:
        if tokens:
            if which not in names:
                names[which] = tree.open()
            tree.extend(names[which], tokens)
            slow.extend(which, tokens)
        elif which in names:
            tree.remove(names.pop(which))
            slow.remove(which)
    return tree, slow, names


@settings(deadline=None)
@given(STEPS, st.integers(2, 6))
def test_counts_are_those_of_all_substrings(steps, max_depth):
    tree, slow, _ = replay(steps, max_depth)
    brute = Counter(
        tuple(sequence[start : start + size])
        for sequence in slow.sequences.values()
        for start in range(len(sequence))
        for size in range(1, min(max_depth, len(sequence) - start) + 1)
    )
    assert +slow.count == brute
    for string in slow.count:
        assert tree.count(string) == brute[string]
        if len(string) < max_depth:
            assert tree.count((*string, 3)) == 0
    assert tree.num_tokens == sum(map(len, slow.sequences.values()))
    assert tree.num_nodes == slow.num_nodes()


@settings(deadline=None)
@given(STEPS, st.integers(2, 6), TOKENS, LIMITS)
def test_drafts_are_those_of_the_definition(steps, max_depth, context, limits):
    tree, slow, names = replay(steps, max_depth)
    assert_same(tree.speculate(context, *limits), slow.speculate(context, *limits))
    for which, sequence in names.items():
        own = slow.sequences[which]
        ours = tree.speculate([], *limits, sequence=sequence, context_length=len(own))
        assert_same(ours, slow.speculate(own, *limits))
        assert tree.tail(sequence).tolist() == own[-max_depth:]


class SlowCache:
    """The two kinds of tree by definition."""

    def __init__(self, max_depth: int, max_cached: int) -> None:
        self.max_depth, self.max_cached = max_depth, max_cached
        self.shared = SlowTree(max_depth)
        self.local: dict[int, SlowTree] = {}
        self.cached: OrderedDict[int, None] = OrderedDict()

    def open(self, name: int, prompt: Tokens) -> None:
        self.local[name] = SlowTree(self.max_depth)
        self.local[name].extend(0, prompt)
        if self.max_cached == 0:
            return
        if name in self.cached:
            self.evict(name)
        while 0 < self.max_cached <= len(self.cached):
            self.evict(next(iter(self.cached)))
        self.cached[name] = None
        self.shared.sequences[name] = []

    def evict(self, name: int) -> None:
        del self.cached[name]
        self.shared.remove(name)

    def append(self, name: int, tokens: Tokens) -> None:
        self.local[name].extend(0, tokens)
        if name in self.cached:
            self.shared.extend(name, tokens)

    def speculate(self, name: int, *limits) -> Speculation:
        context = self.local[name].sequences[0]
        local, shared = (tree.speculate(context, *limits) for tree in (self.local[name], self.shared))
        return local if local.score >= shared.score else shared


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 3), TOKENS, st.booleans()), max_size=14),
    st.integers(2, 6),
    st.sampled_from([-1, 0, 1, 2]),
    LIMITS,
)
def test_the_cache_serves_what_its_trees_say(steps, max_depth, max_cached, limits):
    """Each step opens a request, or appends to it and then perhaps closes it."""
    cache, slow = SuffixCache(max_depth, max_cached), SlowCache(max_depth, max_cached)
    for name, tokens, last in steps:
        if name not in slow.local:
            cache.open(name, tokens)
            slow.open(name, tokens)
        else:
            cache.append(name, tokens)
            slow.append(name, tokens)
        assert_same(cache.speculate(name, *limits), slow.speculate(name, *limits))
        if last:
            cache.close(name)
            del slow.local[name]
        assert cache.open_requests == tuple(slow.local)
        assert cache.cached_requests == tuple(slow.cached)


def test_the_examples_of_the_docstrings():
    cache = SuffixCache(max_depth=8)
    cache.open("r", [5, 6, 7, 8, 5, 6])
    found = cache.speculate("r", 4, min_token_prob=0.5)
    assert found.tokens.tolist() == [7, 8]  # the factor 1 allows match_length tokens
    assert (found.score, found.match_length) == (1.0, 2)
    tree = SuffixTree(max_depth=4)
    tree.extend(tree.open(), [1, 2, 1, 2, 3])
    assert (tree.count([1, 2]), tree.count([1, 2, 3])) == (2, 1)
    assert tree.speculate([0, 1, 2], 1).tokens.tolist() == [3]


def test_long_sequences_cross_blocks():
    """Side by side growth interleaves the blocks of three sequences; a copy of one is drafted to full depth."""
    rng = np.random.default_rng(1)
    texts = rng.integers(0, 1000, (3, 500)).astype(np.int32)
    tree = SuffixTree(max_depth=150, reserve=64)
    names = [tree.open() for _ in texts]
    for start in range(0, 500, 7):
        for name, text in zip(names, texts, strict=True):
            tree.extend(name, text[start : start + 7])
    for text in texts:
        found = tree.speculate(text[200:300], 60)
        assert found.tokens.tolist() == text[300:360].tolist()
        assert (found.match_length, found.score) == (90, 60.0)  # the longest match that leaves 60 tokens of depth 150


def test_removal_returns_memory():
    """A cache at its limit stays at the size it reached when it was first full; empty again, it is the root alone."""
    rng = np.random.default_rng(2)
    cache = SuffixCache(max_depth=12, max_cached_requests=20)
    sizes = []
    for name in range(200):
        cache.open(name, [1])
        cache.append(name, rng.integers(0, 30, 100))
        cache.close(name)
        sizes.append(cache.memory_bytes)
    assert len(cache.cached_requests) == 20
    assert max(sizes) < 1.1 * sizes[20]
    tree = SuffixTree(max_depth=12)
    for _ in range(3):
        names = [tree.open() for _ in range(30)]
        for name in names:
            tree.extend(name, rng.integers(0, 30, 100))
        for name in names:
            tree.remove(name)
        assert (tree.num_nodes, tree.num_tokens, tree.num_sequences) == (1, 0, 0)
    assert tree.memory_bytes < 30 * 100 * (2 * 68 + 17) + 30 * 2000


def test_clear_forgets_responses_and_keeps_open_requests():
    cache = SuffixCache(max_depth=8)
    cache.open("old", [9])
    cache.append("old", [1, 2, 3, 4])
    cache.open("new", [7, 1, 2])
    assert cache.speculate("new").tokens.tolist() == [3, 4]
    cache.clear()
    assert cache.cached_requests == ()
    assert len(cache.speculate("new").tokens) == 0
    cache.append("new", [5, 1, 2])
    assert cache.speculate("new").tokens.tolist() == [5, 1]


def test_wrong_use_is_named():
    cache = SuffixCache(max_depth=4)
    cache.open("a", [1])
    with pytest.raises(RequestError, match="'a' is already open"):
        cache.open("a", [1])
    with pytest.raises(RequestError, match="'b' is not open"):
        cache.append("b", [1])
    with pytest.raises(RequestError, match="'b' has no cached response"):
        cache.evict("b")
    with pytest.raises(ConfigError, match="did you mean 'tree'"):
        cache.speculate("a", mode="trees")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="depth 1"):
        SuffixTree(max_depth=1)
    with pytest.raises(ConfigError, match="-2"):
        SuffixCache(max_cached_requests=-2)
