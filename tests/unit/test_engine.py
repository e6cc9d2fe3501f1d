"""The loop around the step: admission, streaming, stops, limits, cancellation, memory, and what bad input gets."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from outrider import (
    CapacityError,
    ConfigError,
    Draft,
    Engine,
    ProposerError,
    RequestError,
    SamplingParams,
    load_proposer,
)
from outrider.draft import Tree
from outrider.metrics import PrefillRecord, StepRecord, summarize
from outrider.proposer import DraftLimit
from outrider.proposers.none import NoProposer
from outrider.testing import Adversary, Oracle, Scripted, assert_lossless, tiny_target

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2]]
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=9, seed=-3),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("max_batch", [1, 3])
def test_c6_the_oracle_is_accepted_to_full_depth(sampling: SamplingParams, max_batch: int) -> None:
    target = tiny_target()
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, Oracle(target, depth=4).proposer(), max_batch=max_batch, record=records.append)
    engine.generate(PROMPTS, replace(sampling, max_tokens=25, ignore_eos=True))
    summary = summarize([record for record in records if isinstance(record, StepRecord)])
    assert summary.draft_acceptance_rate == 1
    assert summary.tokens_per_target_forward == 5
    assert summary.num_slot_steps == 15


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_c6_the_adversary_costs_nothing_but_time(sampling: SamplingParams) -> None:
    target = tiny_target()
    records: list[StepRecord | PrefillRecord] = []
    adversary = Adversary(target).proposer()
    assert_lossless(target, adversary, PROMPTS, replace(sampling, max_tokens=20, ignore_eos=True))
    engine = Engine(target, adversary, record=records.append)
    engine.generate(PROMPTS[:1], replace(sampling, max_tokens=20, ignore_eos=True))
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert summarize(steps).num_accepted_tokens == 0
    assert len(steps) == 20


def test_requests_come_and_go_while_others_run() -> None:
    target = tiny_target()
    engine = Engine(target, NoProposer(), max_batch=2)
    long = engine.add([1, 2], SamplingParams(max_tokens=30, ignore_eos=True))
    short = engine.add([3], SamplingParams(max_tokens=2, ignore_eos=True))
    waiting = engine.add([4, 5], SamplingParams(max_tokens=3, ignore_eos=True))
    ends: list[int] = []
    counts: Counter[int] = Counter()
    for event in engine.run():
        counts[event.request] += len(event.tokens)
        ends += [event.request] if event.finished else []
    assert ends == [short, waiting, long]
    assert counts == {long: 30, short: 2, waiting: 3}
    assert not engine.busy


def test_stream_counts_prompts_and_a_dropped_stream_cancels() -> None:
    target = tiny_target()
    engine = Engine(target, NoProposer(), max_batch=2)
    stream = engine.stream([[1], [2], [3]], SamplingParams(max_tokens=50, ignore_eos=True))
    assert {next(stream).request for _ in range(2)} == {0, 1}
    stream.close()
    assert not engine.busy
    assert engine.target.cache.lengths == [0, 0]
    assert [answer.request for answer in engine.generate([[1], [2]], SamplingParams(max_tokens=3))] == [0, 1]


def test_cancel_running_waiting_and_unknown() -> None:
    engine = Engine(tiny_target(), NoProposer(), max_batch=1)
    first, second = engine.add([1], SamplingParams(ignore_eos=True)), engine.add([2], SamplingParams(ignore_eos=True))
    engine.admit()
    engine.step()
    assert engine.cancel(first)
    assert engine.cancel(second)
    assert not engine.cancel(99)
    assert not engine.busy


def test_reset_drops_requests_and_what_was_learnt() -> None:
    target = tiny_target()
    engine = Engine(target, load_proposer("suffix", target), max_batch=2)
    engine.add([1, 2, 1, 2], SamplingParams(ignore_eos=True))
    engine.add([1, 2], SamplingParams(ignore_eos=True))
    engine.admit()
    for _ in range(5):
        engine.step()
    engine.reset()
    assert not engine.busy
    fresh = Engine(target, load_proposer("suffix", target), max_batch=2)
    assert engine.session.num_bytes == fresh.session.num_bytes


def test_an_end_of_text_inside_an_accepted_path() -> None:
    target = tiny_target()
    text = Oracle(target).continuation([1, 2, 3], SamplingParams(), 30)
    eos = target.spec.eos_ids[0]
    chosen = next(token for token in text[2:] if token not in text[:2])
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, Oracle(target, depth=20).proposer(), record=records.append)
    engine.batch.eos_ids = frozenset({chosen, eos})
    answer = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=30))[0]
    assert answer.finished == "eos"
    assert list(answer.tokens) == text[: text.index(chosen) + 1]
    step = next(record for record in records if isinstance(record, StepRecord))
    assert step.slots[0].num_emitted == len(answer.tokens) == step.slots[0].num_accepted


@pytest.mark.parametrize("limit", [1, 2, 5, 10**9])
def test_limits_inside_an_accepted_path(limit: int) -> None:
    target = tiny_target(max_positions=24)
    engine = Engine(target, Oracle(target, depth=8).proposer())
    answer = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=limit, ignore_eos=True))[0]
    assert len(answer.tokens) == min(limit, 21)
    assert answer.finished == ("length" if limit < 21 else "context")


def test_a_session_that_overdraws_its_room_is_named() -> None:
    target = tiny_target()
    greedy_drafter = Scripted(lambda tokens, sampling, limit: Tree.chain([0] * (limit.num_nodes + 5)), max_nodes=2)
    engine = Engine(target, greedy_drafter)
    with pytest.raises(ProposerError, match=r"slot 0: 7 nodes were drafted and its limit is 2"):
        engine.generate([[1]], SamplingParams(max_tokens=8))


def test_room_shrinks_towards_the_end() -> None:
    limits: list[DraftLimit] = []
    target = tiny_target()

    def script(tokens: object, sampling: SamplingParams, limit: DraftLimit) -> Tree:
        limits.append(limit)
        return Tree([], [])

    Engine(target, Scripted(script, max_nodes=4)).generate([[1]], SamplingParams(max_tokens=4, ignore_eos=True))
    assert [limit.max_depth for limit in limits] == [3, 2, 1]


def test_feature_layers_reach_the_session() -> None:
    target = tiny_target()
    shapes = []

    def script(tokens: list[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        features = torch.cat(session.features[0])
        shapes.append((features.shape[0] == len(tokens) - 1, features.shape[1]))
        return Tree.chain([1, 2])

    engine = Engine(target, Scripted(script, max_nodes=2, feature_layers=(0, 2)))
    session = engine.session
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=6, ignore_eos=True))
    assert set(shapes) == {(True, 32)}


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "the prompt is empty"),
        ("", {}, "the prompt is empty"),
        ("hello", {}, "no tokenizer"),
        ([1] * 96, {}, "the prompt has 96 tokens but the context limit is 96"),
        ([1, 31], {}, "token 31 is outside the vocabulary of 31"),
        ([-1], {}, "token -1 is outside"),
        ([1], {"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ([1], {"stop": [""]}, "a stop string is empty"),
        ([1], {"stop": ["x"]}, "stop strings need a tokenizer"),
    ],
)
def test_bad_requests_get_one_sentence(prompt: list[int], settings: dict[str, object], message: str) -> None:
    engine = Engine(tiny_target(), NoProposer())
    with pytest.raises(RequestError, match=message):
        engine.add(prompt, SamplingParams(**settings))  # type: ignore[arg-type]
    assert not engine.busy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "max_batch=0 must be at least 1"),
        ({"max_len": 1}, "max_len=1 must be between 2 and 96"),
        ({"max_len": 97}, "max_len=97 must be between 2 and 96"),
        ({"num_nodes": -1}, "num_nodes=-1"),
        ({"verification": "rejecton"}, "unknown verification 'rejecton'; did you mean 'rejection'"),
    ],
)
def test_bad_engine_settings_get_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(tiny_target(), NoProposer(), **settings)  # type: ignore[arg-type]


def test_a_batch_that_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target()
    need = Engine(target, NoProposer(), max_batch=4).memory.new_bytes
    monkeypatch.setattr("outrider.loop.memory.free_bytes", lambda device: need // 2)
    with pytest.raises(CapacityError, match=r"max_batch=4 with max_len=96 needs .* max_batch=2 or max_len=\d+ would"):
        Engine(target, NoProposer(), max_batch=4)
    Engine(target, NoProposer(), max_batch=2)


def test_the_plan_is_what_is_allocated() -> None:
    target = tiny_target()
    engine = Engine(target, NoProposer(), max_batch=3, num_nodes=5)
    cache = engine.target.cache
    assert engine.memory.cache.num_bytes == cache.keys_LCHSD.nbytes + cache.values_LCHSD.nbytes
    assert "3 slots x 106 positions" in str(engine.memory)
    before = cache.keys_LCHSD.data_ptr()
    engine.generate(PROMPTS, SamplingParams(max_tokens=40, ignore_eos=True))
    assert cache.keys_LCHSD.data_ptr() == before


def test_unknown_methods_and_settings_name_the_nearest() -> None:
    target = tiny_target()
    with pytest.raises(ConfigError, match="unknown method 'ngran'; did you mean 'ngram'"):
        load_proposer("ngran", target)
    with pytest.raises(ConfigError, match="method 'ngram' has no setting 'max_m'; did you mean 'max_n'"):
        load_proposer("ngram", target, max_m=3)
    with pytest.raises(ConfigError, match="has no settings, but 'x' was given"):
        load_proposer("none", target, x=3)


def test_block_verification_refuses_trees() -> None:
    target = tiny_target()
    forked = Scripted(lambda tokens, sampling, limit: Tree([1, 2], [-1, -1]), max_nodes=2)
    with pytest.raises(ConfigError, match="'block' needs chain drafts"):
        Engine(target, forked, verification="block").generate([[1]], SamplingParams(max_tokens=4))


def test_rules_agree_when_greedy_and_replay_when_sampled() -> None:
    target = tiny_target()
    drafter = load_proposer("draft_model", target, layers="0", sampled=True, num_nodes=3)
    plain = Engine(target, NoProposer()).generate(PROMPTS, SamplingParams(max_tokens=20))
    for rule in ("coupled", "rejection", "block"):
        greedy = Engine(target, drafter, verification=rule, max_batch=2).generate(
            PROMPTS, SamplingParams(max_tokens=20)
        )
        assert [answer.tokens for answer in greedy] == [answer.tokens for answer in plain]
        warm = SamplingParams(temperature=1.0, seed=11)
        alone = Engine(target, drafter, verification=rule).generate(PROMPTS, replace(warm, max_tokens=20))
        together = Engine(target, drafter, verification=rule, max_batch=3)
        again = together.generate(PROMPTS, replace(warm, max_tokens=20))
        assert [answer.tokens for answer in alone] == [answer.tokens for answer in again]


def test_an_empty_batch_has_an_empty_draft() -> None:
    assert Draft.empty(0).num_slots == 0
