"""Kept beginnings: which text a prompt continues, what is dropped, and that nothing but the time changes."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider import CapacityError, ConfigError, Engine, SamplingParams
from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft, Tree
from outrider.loop.prefixes import PrefixStore
from outrider.metrics import PrefillRecord, StepRecord, ttft_s
from outrider.proposers import REGISTRY, proposer_class
from outrider.proposers.none import NoProposer
from outrider.target import Target
from outrider.testing import Scripted, tiny_target

PLAN = CachePlan(num_layers=1, num_slots=1, num_kv_heads=1, head_dim=2, capacity=64, tail=1, dtype=torch.float32)
TOKEN = PLAN.bytes_per_token
ENDLESS = SamplingParams(max_tokens=6, ignore_eos=True)
WARM = SamplingParams(max_tokens=6, ignore_eos=True, temperature=0.8, seed=7)
PLENTY = 2**22
SYSTEM = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(dtype=torch.float32)


def held(*texts: list[int], num_tokens: int, target: Target) -> PrefixStore:
    """Return a store of at most so many cached tokens after these texts left the slot."""
    store, session = PrefixStore(num_tokens * TOKEN), Engine(target, NoProposer()).session
    for text in texts:
        cache = KVCache(PLAN)
        cache.extend([0], [len(text) - 1])
        store.keep(text, 0, cache, session)
    return store


def length(store: PrefixStore, prompt: list[int]) -> int:
    found = store.find(prompt, with_features=False)
    return 0 if found is None else found.length


def test_the_longest_beginning_is_found(target: Target) -> None:
    store = held([1, 2, 3, 4, 5, 6], [1, 2, 9, 9], [7, 7], num_tokens=99, target=target)
    assert length(store, [1, 2, 3, 4, 8, 8]) == 3  # 1 2 3 4 are shared, the last of them is read again
    assert length(store, [1, 2, 9, 1, 1]) == 2
    assert length(store, [5, 6, 7]) == 0
    assert length(store, [1, 5, 6]) == 0  # one shared token is read again
    assert length(store, [7]) == 0
    # the whole prompt is known: the root is never in the cache, and the token before it is read again
    assert length(store, [1, 2, 3, 4, 5, 6]) == 4
    assert length(store, [1, 2, 3]) == 1
    # the whole kept text is shared: its last token has no keys
    assert length(store, [1, 2, 3, 4, 5, 6, 7, 8]) == 5


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=7), max_size=7),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=8),
)
def test_lookup_equals_a_scan(texts: list[list[int]], prompt: list[int]) -> None:
    def shared(text: list[int]) -> int:
        pairs = zip(text, prompt, strict=False)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(text), len(prompt)))

    store = held(*texts, num_tokens=999, target=tiny_target())
    want = max((min(shared(text) - 1, len(prompt) - 2) for text in texts), default=0)
    assert length(store, prompt) == max(0, want)
    # no kept text begins another one
    assert not any(a != b and b[: len(a)] == a for a in store.texts for b in store.texts)


def test_the_oldest_text_goes_first_and_the_bound_holds(target: Target) -> None:
    first, second, third = [1] * 9, [2] * 9, [3] * 9
    store = held(first, second, num_tokens=16, target=target)
    assert store.num_bytes == 16 * TOKEN
    assert length(store, [1] * 4) == 2  # used: now the second is the oldest
    cache, session = KVCache(PLAN), Engine(target, NoProposer()).session
    cache.extend([0], [8])
    store.keep(third, 0, cache, session)
    assert store.texts == [tuple(first), tuple(third)]
    assert store.num_bytes == 16 * TOKEN
    cache.extend([0], [20])
    store.keep([4] * 29, 0, cache, session)  # larger than the bound: the others stay
    assert store.texts == [tuple(first), tuple(third)]


def test_a_longer_text_takes_the_place_of_its_beginning(target: Target) -> None:
    store = held([1, 2, 3], [1, 2, 3, 4, 5], [1, 2], num_tokens=99, target=target)
    assert store.texts == [(1, 2, 3, 4, 5)]
    assert len(held([1, 2], num_tokens=0, target=target)) == 0


def conversation(engine: Engine, params: SamplingParams) -> Iterator[tuple[int, ...]]:
    """Yield answers: two chats with one system message, of two turns, each turn asked at once; then the first again."""
    chats = [[*SYSTEM, 10, 11], [*SYSTEM, 12]]
    for _ in range(2):
        answers = engine.generate(chats, params)
        yield from (answer.tokens for answer in answers)
        chats = [[*chat, *answer.tokens, 20, 21] for chat, answer in zip(chats, answers, strict=True)]
    yield engine.generate([[*SYSTEM, 10, 11]], params)[0].tokens


def cached(records: list[StepRecord | PrefillRecord]) -> list[int]:
    return [count for one in records if isinstance(one, PrefillRecord) for count in one.cached_tokens]


@pytest.mark.parametrize("params", [ENDLESS, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("method", REGISTRY)
def test_every_method_goes_on_from_a_known_beginning(target: Target, method: str, params: SamplingParams) -> None:
    seen: dict[int, list[list[int]]] = defaultdict(list)
    texts, nodes = [], []
    for num_bytes in (0, PLENTY):
        records: list[StepRecord | PrefillRecord] = []
        proposer = proposer_class(method).example(target, 1)
        engine = Engine(target, proposer, max_batch=2, prefix_cache_bytes=num_bytes, record=records.append)
        texts.append(list(conversation(engine, params)))
        steps = [one for one in records if isinstance(one, StepRecord)]
        nodes.append([[(slot.num_nodes, slot.num_accepted) for slot in step.slots] for step in steps])
        seen[num_bytes] = [cached(records)]
    assert texts[0] == texts[1]
    assert nodes[0] == nodes[1], "what was drafted and accepted is the same too"
    assert sum(seen[0][0]) == 0
    # the first turns know nothing; a second turn knows prompt and answer; the last request knows all but two tokens;
    # one token at the cut is read again, and with several modules one more for each of them
    first, second = seen[PLENTY][0][:2], seen[PLENTY][0][2:]
    most = [len(SYSTEM) + 2 + 6 - 1, len(SYSTEM) + 1 + 6 - 1, len(SYSTEM)]
    again = [most[place] - second[place] for place in range(3)]
    assert first == [0, 0]
    # (their caches lack the last step too)
    assert max(again) <= (5 if method == "mtp" else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_values_and_logits_are_those_of_a_whole_prompt_bit_by_bit(dtype: torch.dtype) -> None:
    """The kept text was written by steps with drafts, and by chunks; the other engine reads the prompt at once."""
    target = tiny_target(dtype=dtype, max_positions=200)
    draft = Scripted(lambda tokens, params, limit: Tree([5, 6, 7, 8][: limit.num_nodes], [-1, -1, 0, 0]), max_nodes=4)
    kept = Engine(target, draft, prefix_cache_bytes=PLENTY, prefill_chunk=7)
    whole = Engine(target, draft, prefix_cache_bytes=0)
    prompt = [token % 29 for token in range(60)]
    (answer,) = kept.generate([prompt], replace(WARM, max_tokens=40))
    follow_up = [*prompt, *answer.tokens, 9, 9, 9, 8]
    sides = []
    for engine in (kept, whole):
        logits: list[torch.Tensor] = []
        engine.add(follow_up, replace(WARM, max_tokens=5))
        while not engine.batch.running:
            engine.admit()
        cache, length = engine.target.cache, len(follow_up) - 1
        assert cache.lengths == [length]
        forward = engine.target.forward([0], [follow_up[-1]], Draft.empty(1))  # nothing is committed
        logits.append(forward.logits_BMV[0][0].clone())
        sides.append([cache.keys_LCHSD[:, 0, :, :length], cache.values_LCHSD[:, 0, :, :length], *logits])
    for ours, theirs in zip(*sides, strict=True):
        assert torch.equal(ours, theirs)
    assert len(kept.prefixes) == 1


def test_a_session_that_keeps_nothing_gets_the_features_of_whole_prompts(target: Target) -> None:
    shapes: list[bool] = []

    def script(tokens: list[int], params: SamplingParams, limit: object) -> Tree:
        features = engine.session.features  # type: ignore[attr-defined]
        shapes.append(sum(map(len, features[0])) == len(tokens) - 1)
        return Tree([], [])

    records: list[StepRecord | PrefillRecord] = []
    third_party = Scripted(script, max_nodes=2, feature_layers=(1,))
    engine = Engine(target, third_party, prefix_cache_bytes=PLENTY, record=records.append)
    list(conversation(engine, ENDLESS))
    assert set(shapes) == {True}
    assert sum(cached(records)) == 0


def test_requests_of_one_step_take_the_same_beginning(target: Target) -> None:
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, NoProposer(), max_batch=3, prefix_cache_bytes=PLENTY, record=records.append)
    prompts = [[*SYSTEM, 10, last, 12] for last in (20, 21, 22)]
    plain = Engine(target, NoProposer(), prefix_cache_bytes=0)
    engine.generate([[*SYSTEM, 10, 19]], ENDLESS)
    got = [answer.tokens for answer in engine.generate(prompts, ENDLESS)]
    assert got == [answer.tokens for answer in plain.generate(prompts, ENDLESS)]
    assert cached(records) == [0, 8, 8, 8]  # 9 tokens are shared, and the last of them is read again


def test_a_cancelled_request_is_kept_and_a_reset_forgets(target: Target) -> None:
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, NoProposer(), prefix_cache_bytes=PLENTY, record=records.append)
    request = engine.add([*SYSTEM, 10], replace(ENDLESS, max_tokens=50))
    for _ in range(3):
        engine.admit()
        engine.step()
    assert engine.cancel(request)
    assert [len(text) for text in engine.prefixes.texts] == [len(SYSTEM) + 1 + 3]
    engine.generate([[*SYSTEM, 10, 11]], ENDLESS)
    assert cached(records) == [0, 8]
    engine.reset()
    assert len(engine.prefixes) == 0
    assert engine.prefixes.num_bytes == 0


def test_after_an_exception_kept_texts_are_whole(target: Target) -> None:
    plain = Engine(target, NoProposer(), max_batch=2, prefix_cache_bytes=0)
    want = list(conversation(plain, ENDLESS))
    engine = Engine(target, NoProposer(), max_batch=2, prefix_cache_bytes=PLENTY)
    for owner, name in (
        (KVCache, "copy"),
        (KVCache, "paste"),
        (PrefixStore, "_add"),
        (PrefixStore, "find"),
        (type(engine.session), "release"),
        (type(engine.session), "reuse"),
    ):

        def broken(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        list(conversation(engine, ENDLESS))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(KeyboardInterrupt):
                engine.generate([[*SYSTEM, 10, 15, 16]], ENDLESS)
        assert not engine.busy
        assert list(conversation(engine, ENDLESS)) == want
        assert engine.target.cache.lengths == [0, 0]


def test_the_plan_counts_kept_texts_and_refuses_too_many(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Engine(target, NoProposer(), prefix_cache_bytes=0).memory
    planned = Engine(target, NoProposer(), prefix_cache_bytes=5000).memory
    assert planned.new_bytes == plain.new_bytes + 5000
    assert "kept prefixes up to" in str(planned)
    assert Engine(target, NoProposer()).memory.prefix_bytes == plain.cache.num_bytes
    assert Engine(tiny_target(), NoProposer()).memory.prefix_bytes == 0  # float64: rows are not known to be invariant
    with pytest.raises(ConfigError, match=r"prefix_cache_bytes=-1 must be at least 0"):
        Engine(target, NoProposer(), prefix_cache_bytes=-1)
    monkeypatch.setattr("outrider.loop.memory.free_bytes", lambda device: plain.new_bytes + 1000)
    with pytest.raises(
        CapacityError, match=r"prefix_cache_bytes=5000 beside max_batch=1 .* prefix_cache_bytes=1000 would fit"
    ):
        Engine(target, NoProposer(), prefix_cache_bytes=5000)
    assert Engine(target, NoProposer()).memory.prefix_bytes == 500


def test_records_hold_the_time_to_the_first_token(target: Target) -> None:
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, NoProposer(), max_batch=2, prefill_chunk=4, record=records.append)
    engine.generate([[1] * 20, [2, 3]], ENDLESS)
    prefills = [one for one in records if isinstance(one, PrefillRecord)]
    steps = [one for one in records if isinstance(one, StepRecord)]
    found = ttft_s(steps, prefills)
    assert set(found) == {1, 2}
    last = prefills[-1].waited_s[prefills[-1].requests.index(1)]
    assert found[1] == last + next(step for step in steps if any(slot.request == 1 for slot in step.slots)).total_s
    assert found[2] < found[1], "the short prompt does not wait for the long one"
