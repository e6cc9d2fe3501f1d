"""Prompts are read in chunks between steps: running requests go on, and every text stays what it was."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from outrider import ConfigError, Engine, SamplingParams
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposers import REGISTRY, proposer_class
from outrider.proposers.none import NoProposer
from outrider.testing import tiny_target

ENDLESS = SamplingParams(max_tokens=24, ignore_eos=True)
PROMPTS = [[1, 2, 3], [7] * 60, [5, 6], [4, 9] * 9]
Records = list[StepRecord | PrefillRecord]


def take(engine: Engine, tokens: dict[int, list[int]]) -> None:
    for event in engine.run():
        tokens[event.request] += event.tokens


def test_running_requests_get_a_token_between_two_chunks() -> None:
    records: Records = []
    engine = Engine(tiny_target(), NoProposer(), max_batch=2, prefill_chunk=10, record=records.append)
    short = engine.add([1, 2], ENDLESS)
    engine.admit()
    engine.step()
    long = engine.add([7] * 61, replace(ENDLESS, max_tokens=3))
    for _ in engine.run():
        pass
    order = ["read" if isinstance(one, PrefillRecord) else "step" for one in records]
    # 60 tokens before the root, 10 at a time, and a step of the other request after each of them
    assert order[2:14] == ["read", "step"] * 6
    chunks = [one for one in records if isinstance(one, PrefillRecord)]
    assert [(one.requests, one.num_tokens) for one in chunks] == [((short,), 1), *[((long,), 10)] * 6]
    steps = [one for one in records if isinstance(one, StepRecord)]
    first = next(place for place, step in enumerate(steps) if any(slot.request == long for slot in step.slots))
    assert first == 6


def test_prompts_share_a_chunk_and_a_short_one_does_not_wait() -> None:
    records: Records = []
    engine = Engine(tiny_target(), NoProposer(), max_batch=3, prefill_chunk=12, record=records.append)
    ids = [engine.add(prompt, replace(ENDLESS, max_tokens=2)) for prompt in ([1] * 31, [2] * 5, [3])]
    for _ in engine.run():
        pass
    chunks = [(one.requests, one.num_tokens) for one in records if isinstance(one, PrefillRecord)]
    # shares of 4 tokens: the second prompt has 4 before its root, the third none; then the first is alone
    assert chunks == [(tuple(ids), 8), ((ids[0],), 12), ((ids[0],), 12), ((ids[0],), 2)]
    assert sum(count for _, count in chunks) == 30 + 4


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("method", REGISTRY)
def test_texts_do_not_depend_on_chunks(method: str, chunk: int) -> None:
    target = tiny_target(dtype=torch.float32)
    params = [ENDLESS, replace(ENDLESS, temperature=0.9, seed=4, max_tokens=9), ENDLESS, ENDLESS]
    want = [answer.tokens for answer in Engine(target, NoProposer()).generate(PROMPTS, params)]
    engine = Engine(target, proposer_class(method).example(target, 2), max_batch=2, prefill_chunk=chunk)
    assert [answer.tokens for answer in engine.generate(PROMPTS, params)] == want


def test_a_request_may_be_cancelled_while_its_prompt_is_read() -> None:
    engine = Engine(tiny_target(), NoProposer(), max_batch=2, prefill_chunk=5)
    long, short = engine.add([7] * 60, ENDLESS), engine.add([1, 2], ENDLESS)
    engine.admit()
    engine.step()
    assert set(engine.batch.reading) == {0}
    assert engine.busy
    assert engine.cancel(long)
    assert engine.target.cache.lengths[0] == 0
    tokens: dict[int, int] = defaultdict(int)
    for event in engine.run():
        tokens[event.request] += len(event.tokens)
    assert tokens == {short: 24}
    engine.add([7] * 60, ENDLESS)
    engine.admit()
    engine.reset()
    assert not engine.busy
    assert engine.target.cache.lengths == [0, 0]


def test_an_exception_between_chunks_loses_no_request() -> None:
    target = tiny_target()
    want = [answer.tokens for answer in Engine(target, NoProposer()).generate(PROMPTS, ENDLESS)]
    for fatal in range(1, 30, 3):
        count = 0

        def record(item: object, fatal: int = fatal) -> None:
            nonlocal count
            count += 1
            if count == fatal:
                raise KeyboardInterrupt

        engine = Engine(target, NoProposer(), max_batch=2, prefill_chunk=9, record=record)
        read = engine.target.prefill

        def prefill(*args: object, fatal: int = fatal, read: object = read) -> object:
            nonlocal count
            count += 1
            if count == fatal:
                raise KeyboardInterrupt
            return read(*args)  # type: ignore[operator]

        engine.target.prefill = prefill  # type: ignore[method-assign, assignment]
        ids = [engine.add(prompt, ENDLESS) for prompt in PROMPTS]
        tokens: dict[int, list[int]] = defaultdict(list)
        with pytest.raises(KeyboardInterrupt):
            take(engine, tokens)
        take(engine, tokens)
        assert [tuple(tokens[id]) for id in ids] == want


def test_padding_of_a_chunk_stays_inside_the_slots() -> None:
    """One slot is nearly full while another begins: a piece as wide as the chunk would leave it."""
    target = tiny_target(max_positions=40)
    prompts = [[token % 29 for token in range(39)], [token % 7 for token in range(38)]]
    want = [answer.tokens for answer in Engine(target, NoProposer()).generate(prompts, ENDLESS)]
    engine = Engine(target, NoProposer(), max_batch=2, prefill_chunk=60)
    first = engine.add(prompts[0], ENDLESS)
    engine.prefill_chunk = 30
    engine.admit()
    assert engine.target.cache.lengths[0] == 30
    engine.prefill_chunk = 60
    second = engine.add(prompts[1], ENDLESS)
    tokens: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for event in engine.run():
        tokens[event.request] += event.tokens
    assert [tokens[first], tokens[second]] == want


@pytest.mark.parametrize("chunk", [0, -3, 1.5])
def test_a_chunk_has_at_least_one_token(chunk: int) -> None:
    with pytest.raises(ConfigError, match="prefill_chunk"):
        Engine(tiny_target(), NoProposer(), prefill_chunk=chunk)
