"""After an exception anywhere in a step the engine goes on: every text is plain decoding's, and no token is lost."""

from collections import defaultdict
from dataclasses import replace
from functools import cache

import pytest
from interrupting import Site, interrupted, sites

from outrider import Engine, SamplingParams
from outrider.adaptive.controller import AdaptiveBudget
from outrider.loop.prefixes import PrefixStore
from outrider.proposer import Proposer
from outrider.proposers import REGISTRY, proposer_class
from outrider.proposers.none import NoProposer
from outrider.target import Target
from outrider.testing import Metronome, TableCosts, tiny_target

PROMPTS = [[1, 2, 3, 1, 2, 3, 1], [4, 5], [6, 7, 6, 7, 6]]
LIMITS = [4, 2, 5]
WARM = SamplingParams(temperature=0.8, seed=3)
SHARES = 3
"""Each method takes every third call, so that three methods after one another take all."""
OTHER = [[9, 8, 7, 9, 8, 7, 9]]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@cache
def example(target: Target, method: str) -> Proposer:
    return proposer_class(method).example(target, 2)


def started(target: Target, method: str) -> Engine:
    """Return an engine of two slots that has answered a request."""
    engine = Engine(target, example(target, method), max_batch=2)
    engine.generate(OTHER, SamplingParams(max_tokens=1, ignore_eos=True))
    return engine


def queued(engine: Engine, more: int = 0) -> list[int]:
    return [
        engine.add(prompt, replace(WARM, max_tokens=limit + more, ignore_eos=True))
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]


def read(engine: Engine, tokens: dict[int, list[int]]) -> None:
    for event in engine.run():
        tokens[event.request] += event.tokens


def texts(engine: Engine, more: int = 0) -> list[list[int]]:
    tokens: dict[int, list[int]] = defaultdict(list)
    ids = queued(engine, more)
    read(engine, tokens)
    return [tokens[id] for id in ids]


@pytest.mark.parametrize("method", REGISTRY)
def test_requests_go_on_after_an_exception_at_any_call(target: Target, method: str) -> None:
    want = texts(Engine(target, NoProposer()))
    with sites() as counts:
        texts(started(target, method))
    assert len(counts) > 100, "the engine makes that many calls"
    place = list(REGISTRY).index(method)
    for site, count in list(counts.items())[place % SHARES :: SHARES]:
        engine = started(target, method)
        ids, tokens = queued(engine), defaultdict(list)
        with interrupted(site, nth=(count + 1) // 2):
            read(engine, tokens)
        read(engine, tokens)
        assert [tokens[id] for id in ids] == want, site
        assert not engine.busy, site
        assert engine.target.cache.lengths == [0, 0], site


@pytest.mark.parametrize("method", ["none", "suffix", "draft_model"])
def test_an_answer_that_was_given_up_leaves_nothing_behind(target: Target, method: str) -> None:
    """As Ctrl-C in `generate` does."""
    plain = Engine(target, NoProposer())
    want = [answer.tokens for answer in plain.generate(OTHER, SamplingParams(max_tokens=5, ignore_eos=True))]
    with sites() as counts:
        started(target, method).generate(PROMPTS, SamplingParams(max_tokens=3, ignore_eos=True))
    place = ["none", "suffix", "draft_model"].index(method)
    for site, count in list(counts.items())[place::SHARES]:
        engine = started(target, method)
        with interrupted(site, nth=count):
            engine.generate(PROMPTS, SamplingParams(max_tokens=3, ignore_eos=True))
        assert not engine.busy, site
        again = engine.generate(OTHER, SamplingParams(max_tokens=5, ignore_eos=True))
        assert [answer.tokens for answer in again] == want, site


LEARNING = (
    Engine._begun,
    Engine._start,
    Engine._release,
    PrefixStore.find,
    PrefixStore.keep,
    PrefixStore._add,
    AdaptiveBudget.limits,
    AdaptiveBudget.prune,
    AdaptiveBudget.observe,
    AdaptiveBudget._book,
)
"""Functions of kept prefixes and of the adaptive budget."""


@pytest.mark.parametrize("method", ["suffix", "draft_model", "eagle3"])
def test_kept_prefixes_and_the_budget_survive_an_exception_at_any_call(target: Target, method: str) -> None:
    """The second time, every prompt takes over what is kept of the first, and its longer text replaces that."""
    plain = Engine(target, NoProposer(), prefix_cache_bytes=0)
    before, want = texts(plain), texts(plain, more=2)

    def learnt() -> Engine:
        budget = Metronome(AdaptiveBudget(TableCosts({1: 1.0, 32: 1.1}), 4), [0.001])
        engine = Engine(target, example(target, method), max_batch=2, budget=budget, prefix_cache_bytes=10**8)
        assert texts(engine) == before
        return engine

    engine = learnt()
    with sites(LEARNING) as counts:
        texts(engine, more=2)
    assert {site.code for site in counts} == {function.__code__ for function in LEARNING}
    place = ["suffix", "draft_model", "eagle3"].index(method)
    for site, count in list(counts.items())[place::SHARES]:
        engine = learnt()
        ids, tokens = queued(engine, more=2), defaultdict(list)
        with interrupted(site, nth=(count + 1) // 2):
            read(engine, tokens)
        read(engine, tokens)
        assert [tokens[id] for id in ids] == want, site
        assert texts(engine) == before, site


def test_the_way_back_may_be_interrupted_too(target: Target) -> None:
    want = texts(Engine(target, NoProposer()))

    with sites() as counts:
        texts(started(target, "suffix"))
    first = next(site for site in counts if site.code is Engine.step.__code__ and site.after)
    for cut in _rebuild_sites(target, first):
        tokens: dict[int, list[int]] = defaultdict(list)
        engine = started(target, "suffix")
        ids = queued(engine)
        with interrupted(first, nth=2):
            read(engine, tokens)
        with interrupted(cut):
            read(engine, tokens)
        read(engine, tokens)
        assert [tokens[id] for id in ids] == want, cut


def _rebuild_sites(target: Target, first: Site) -> list[Site]:
    engine = started(target, "suffix")
    queued(engine)
    with interrupted(first, nth=2):
        read(engine, defaultdict(list))
    with sites() as counts:
        read(engine, defaultdict(list))
    found = [site for site in counts if site.code is Engine._rebuild.__code__]
    assert len(found) > 10
    return found
