"""Nothing that was decided is lost: events wait until they are read, whoever reads them and in which order."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from outrider import Engine, Event, RequestError, SamplingParams, load_proposer
from outrider.draft import Tree
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposers.none import NoProposer
from outrider.requests.events import Outboxes
from outrider.requests.text import Piece
from outrider.sampling import NO_TOKEN
from outrider.target import Forward
from outrider.testing import Oracle, Scripted, assert_lossless, tiny_target

PROMPTS = [[5, 6, 7], [9, 8, 7, 6], [20, 21], [30, 3, 2, 1, 4]]


def plain(num_tokens: int) -> list[list[int]]:
    engine = Engine(tiny_target(), NoProposer(), max_batch=4)
    return [
        list(answer.tokens)
        for answer in engine.generate(PROMPTS, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    ]


def test_run_may_be_left_at_any_event() -> None:
    target = tiny_target()
    engine = Engine(target, load_proposer("ngram", target), max_batch=2)
    ids = [engine.add(prompt, SamplingParams(max_tokens=9, ignore_eos=True)) for prompt in PROMPTS]
    tokens: dict[int, list[int]] = defaultdict(list)
    while engine.busy:
        for event in engine.run():
            tokens[event.request] += event.tokens
            break
    assert [tokens[id] for id in ids] == plain(9)


def test_two_streams_and_a_run_take_turns() -> None:
    target = tiny_target()
    engine = Engine(target, Oracle(target, depth=3).proposer(), max_batch=2)
    added = engine.add(PROMPTS[2], SamplingParams(max_tokens=9, ignore_eos=True))
    readers = [
        engine.stream([PROMPTS[0]], SamplingParams(max_tokens=9, ignore_eos=True)),
        engine.run(),
        engine.stream([PROMPTS[1]], SamplingParams(max_tokens=9, ignore_eos=True)),
    ]
    texts: list[list[int]] = [[], [], []]
    live = [0, 1, 2]
    while live:
        for reader in list(live):
            event = next(readers[reader], None)
            if event is None:
                live.remove(reader)
                continue
            assert event.request == (added if reader == 1 else 0)
            texts[reader] += event.tokens
    want = plain(9)
    assert texts == [want[0], want[2], want[1]]
    assert not engine.busy


@pytest.mark.parametrize("kind", [StepRecord, PrefillRecord])
def test_a_callback_that_raises_loses_nothing(kind: type) -> None:
    calls: list[object] = []

    def record(item: StepRecord | PrefillRecord) -> None:
        if isinstance(item, kind):
            calls.append(item)
            if len(calls) % 2:
                raise ValueError("a callback's own mistake")

    engine = Engine(tiny_target(), NoProposer(), max_batch=2, record=record)
    ids = [engine.add(prompt, SamplingParams(max_tokens=6, ignore_eos=True)) for prompt in PROMPTS]
    tokens: dict[int, list[int]] = defaultdict(list)
    raised = 0
    while engine.busy:
        try:
            for event in engine.run():
                tokens[event.request] += event.tokens
        except ValueError:
            raised += 1
    assert raised > 0
    assert [tokens[id] for id in ids] == plain(6)


def test_a_stream_whose_request_is_cancelled_says_so() -> None:
    engine = Engine(tiny_target(), NoProposer(), max_batch=2)
    stream = engine.stream(PROMPTS[:2], SamplingParams(max_tokens=9, ignore_eos=True))
    first = next(stream)
    assert first.request == 0
    assert engine.cancel(1)
    rest = list(stream)
    assert [event.finished for event in rest if event.request == 0] == ["cancelled"]
    assert sum(len(event.tokens) for event in rest if event.request == 1) == 9


def test_take_gives_each_event_once() -> None:
    boxes = Outboxes()
    one, two = boxes.open(1), boxes.open(2)
    boxes.claim(2)
    one.events += [Event(request=1, tokens=(5,)), Event(request=1, tokens=(6,), finished="length")]
    two.events += [Event(request=2, tokens=(7,))]
    assert not boxes.pending
    boxes.announce_all()
    assert boxes.pending
    first = next(boxes.take())
    assert first.tokens == (5,)
    assert [event.tokens for event in boxes.take()] == [(6,)]
    assert 1 not in boxes
    assert not boxes.pending
    assert [event.tokens for event in boxes.take({2})] == [(7,)]
    assert list(boxes.take({2})) == []
    boxes.close(2)
    assert 2 not in boxes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(temperature=0.7, top_p=0.9)]
)
@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_logits_that_are_not_finite_end_their_request_alone(bad: float, sampling: SamplingParams, rule: str) -> None:
    target = tiny_target()
    want = Engine(target, NoProposer()).generate([[9, 8]], SamplingParams(max_tokens=8, ignore_eos=True))
    engine = Engine(target, NoProposer(), max_batch=2, verification=rule)
    inner = engine.target

    class Broken:
        cache = inner.cache
        prefill = inner.prefill
        broken = False

        def forward(self, slots: list[int], roots: list[int], draft: object) -> Forward:
            forward = inner.forward(slots, roots, draft)  # type: ignore[arg-type]
            if inner.cache.lengths[0] == 4:
                logits_BMV = torch.stack(list(forward.logits_BMV)).clone()
                logits_BMV[0] = bad
                inner.cache.values_LCHSD[:, 0] = math.nan
                return Forward(logits_BMV, None)
            return forward

    engine.target = Broken()  # type: ignore[assignment]
    broken = engine.add([1, 2, 3], replace(sampling, max_tokens=8, ignore_eos=True))
    right = engine.add([9, 8], SamplingParams(max_tokens=8, ignore_eos=True))
    events: dict[int, list[Event]] = defaultdict(list)
    for event in engine.run():
        events[event.request].append(event)
    assert events[broken][-1].finished == "error"
    assert "behind 5 tokens are not finite" in str(events[broken][-1].error)
    assert sum(len(event.tokens) for event in events[broken]) == 2
    assert [token for event in events[right] for token in event.tokens] == list(want[0].tokens)
    engine.target = inner
    again = engine.generate([[1, 2, 3, 4]], SamplingParams(max_tokens=4, ignore_eos=True))
    assert again == Engine(target, NoProposer()).generate([[1, 2, 3, 4]], SamplingParams(max_tokens=4, ignore_eos=True))


def test_nobody_calls_an_answer_that_ended_in_an_error_lossless(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target()
    monkeypatch.setattr("outrider.verify.choose_one", lambda *arguments: NO_TOKEN)
    with pytest.raises(RequestError, match="prompt 0: the target's logits behind 3 tokens are not finite"):
        assert_lossless(target, NoProposer(), [[1, 2, 3]], SamplingParams(max_tokens=4))
    event = next(Engine(target, NoProposer()).stream([[1, 2, 3]]))
    with pytest.raises(RequestError, match="not finite"):
        event.raise_for_error()


def test_reset_after_a_step_that_was_broken_off() -> None:
    target = tiny_target()
    fails = [True]

    def script(tokens: object, sampling: SamplingParams, room: object) -> Tree:
        if fails:
            raise ValueError("a proposer's own mistake")
        return Tree([], [])

    engine = Engine(target, Scripted(script, max_nodes=2), max_batch=2)
    for prompt in PROMPTS:
        engine.add(prompt, SamplingParams(max_tokens=6, ignore_eos=True))
    with pytest.raises(ValueError, match="own mistake"):
        next(engine.run())
    engine.reset()
    assert not engine.busy
    fails.clear()
    answers = engine.generate(PROMPTS, SamplingParams(max_tokens=6, ignore_eos=True))
    assert [list(answer.tokens) for answer in answers] == plain(6)


def test_an_event_reads_like_a_sentence() -> None:
    some = Event(request=3, tokens=(5, 6), num_accepted=1, pieces=(Piece(" so", True), Piece(" it", False)))
    assert repr(some) == "Event(request=3, text=' so it', 2 tokens, 1 accepted)"
    failed = Event(request=0, finished="error", error="not finite")
    assert repr(failed) == "Event(request=0, text='', 0 tokens, 0 accepted, finished='error', error='not finite')"
