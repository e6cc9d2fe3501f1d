"""Draft windows: a head reads the first and the last positions of a text, at their true rotary positions."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider import Commit, ConfigError, DraftLimit, SamplingParams, SessionPlan
from outrider.cache import CachePlan, KVCache, Window
from outrider.models.eagle3 import Eagle3Head
from outrider.noise import Stream
from outrider.placement import Placement
from outrider.proposer import Reused
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.proposers.eagle3 import Eagle3Config, Eagle3Proposer, head_of, random_checkpoint
from outrider.proposers.hybrid import HybridConfig
from outrider.proposers.method_spec import method_specs
from outrider.proposers.mtp import MtpConfig, MtpProposer
from outrider.proposers.mtp import random_checkpoint as random_modules
from outrider.testing import tiny_target

TARGET = tiny_target()
VOCAB = TARGET.spec.vocab_size
LENGTH = 90
ONE_LAYER = [0, 1, 2, 3]  # seeds of heads of one layer, of each kind of output
HEADS = {seed: head_of(random_checkpoint(TARGET, seed), TARGET) for seed in ONE_LAYER}


class Text:
    """A text, and drafts of a head that holds all of it and hides what the window does not show."""

    def __init__(self, head: Eagle3Head, seed: int, length: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, VOCAB - 1, (LENGTH,), generator=generator).tolist()
        self.features_TF = torch.randn(LENGTH, head.spec.features, generator=generator, dtype=torch.float64)
        self.head, self.length = head, length

    def chain(self, seen: Sequence[int], depth: int) -> list[int]:
        """Draft a chain from the pairs that are seen."""
        head, count = self.head, self.length - 1
        cache = KVCache(head.plan(1, 2 * LENGTH, 1))
        seen_T = torch.tensor([t in seen for t in range(count)])
        mask_MT = torch.eye(count, dtype=torch.bool) | (torch.ones(count, count).tril().bool() & seen_T)
        states_RE = head.fuse(self.features_TF[:count])
        out_RE = head.read(states_RE, torch.tensor(self.tokens[1 : self.length]), rows(0, mask_MT), cache).states_RE[
            -1:
        ]
        chain: list[int] = []
        for step in range(depth):
            logits_K = head.predict(out_RE)[0]
            best = int(logits_K.argmax())
            chain.append(best if head.ids_K is None else int(head.ids_K[best]))
            mask_1T = torch.cat([seen_T, torch.ones(step + 1, dtype=torch.bool)])[None]
            out_RE = head.read(out_RE, torch.tensor(chain[-1:]), rows(count + step, mask_1T), cache).states_RE
        return chain


def rows(start: int, mask_MT: Tensor) -> Placement:
    at_1M = torch.arange(start, start + len(mask_MT))[None]
    first = torch.zeros(1, dtype=torch.int64)
    return Placement(
        slots_B=first,
        lengths_B=first,
        positions_BM=at_1M,
        write_BM=at_1M,
        mask_BMT=mask_MT[None],
        limit=mask_MT.shape[1],
    )


def session_of(head: Eagle3Head, window: Window, **shape: Any) -> RecurrentSession:
    plan = SessionPlan(max_slots=2, max_positions=LENGTH, noise=Stream.TARGET, device=torch.device("cpu"))
    return RecurrentSession(head, plan, vocab_size=VOCAB, **{"num_nodes": 4, "depth": 4} | shape, window=window)


def seen(window: Window, count: int) -> list[int]:
    """Return the pairs of `count` that are seen: the sinks, and `recent` of the last, up to an eighth more."""
    hidden = [first for first in range(count) if first % max(1, window.recent // 8) == 0]
    hidden = [first for first in hidden if count - first - window.sinks >= window.recent]
    dropped = max(hidden, default=0)
    return [*range(min(count, window.sinks)), *range(window.sinks + dropped, count)]


@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.sampled_from(ONE_LAYER), kind=st.sampled_from(["chain", "tree"]))
def test_drafts_are_those_of_a_head_that_sees_the_window(data: st.DataObject, seed: int, kind: str) -> None:
    """A head of one layer, through any history: prompts short and long, steps with and without a draft."""
    window = Window(data.draw(st.integers(1, 20)), data.draw(st.integers(0, 6)))
    head = HEADS[seed]
    session = session_of(head, window, paths=((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)) if kind == "tree" else None)
    texts = {slot: Text(head, slot, data.draw(st.integers(2, 60))) for slot in range(2)}
    for slot, text in texts.items():
        session.admit(slot, text.tokens[: text.length], SamplingParams(), text.features_TF[: text.length - 1])
    for _ in range(data.draw(st.integers(1, 4))):
        drafting = data.draw(st.sampled_from([[0, 1], [0], [1]]))
        trees = session.propose(drafting, [DraftLimit(4, 4)] * len(drafting)).trees
        for slot, tree in zip(drafting, trees, strict=True):
            assert tree.tokens == texts[slot].chain(seen(window, texts[slot].length - 1), 4)
        session.observe(*step(texts, data.draw(st.integers(1, 6))))


def step(texts: dict[int, Text], count: int) -> tuple[list[Commit], Tensor]:
    """Go on by `count` tokens in every slot."""
    features_BMF, commits = [], []
    for slot, text in texts.items():
        start, text.length = text.length, text.length + count
        features_BMF.append(text.features_TF[start - 1 : start - 1 + count])
        commits.append(Commit(slot, list(range(count)), text.tokens[start : start + count], slot))
    return commits, torch.stack(features_BMF)


def test_every_pair_is_read_once_and_none_sees_more_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    head, window, read, limits = HEADS[0], Window(16, 3), [], []
    session = session_of(head, window)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(states_RE: Tensor, tokens_R: Tensor, placement: Placement, *arguments: Any, **named: Any) -> Any:
            read.append(len(tokens_R))
            limits.append(placement.limit)
            return original(states_RE, tokens_R, placement, *arguments, **named)

        return call

    for name in ("read", "store"):
        monkeypatch.setattr(head, name, counted(getattr(head, name)))
    text = Text(head, 0, 80)
    session.admit(0, text.tokens[:80], SamplingParams(), text.features_TF[:79])
    session.catch_up([0])
    assert sum(read) == 78  # the last pair is read with the draft
    assert max(limits) <= 3 + 16 + 1


@pytest.mark.parametrize("shared", [2, 20, 40, 58])
def test_a_request_may_begin_with_any_part_of_a_kept_text(shared: int) -> None:
    head, window = HEADS[2], Window(10, 2)
    first, second = session_of(head, window), session_of(head, window)
    text = Text(head, 0, 60)
    first.admit(0, text.tokens[:60], SamplingParams(), text.features_TF[:59])
    first.propose([0], [DraftLimit(4, 4)])
    kept = first.keep(0)
    assert kept.num_positions == 59
    other = Text(head, 1, shared + 5)
    other.tokens[: shared + 1], other.features_TF[:shared] = text.tokens[: shared + 1], text.features_TF[:shared]
    features_TF = other.features_TF[shared : shared + 4]
    second.reuse(1, other.tokens[: shared + 5], SamplingParams(), features_TF, Reused(kept, shared))
    tree = second.propose([1], [DraftLimit(4, 4)]).trees[0]
    assert tree.tokens == other.chain(seen(window, shared + 4), 4)


def test_a_window_moves_keys_and_values_of_one_slot_alone() -> None:
    plan = CachePlan(num_layers=1, num_slots=2, num_kv_heads=2, head_dim=4, capacity=50, tail=3, dtype=torch.float64)
    cache = KVCache(plan.within(Window(16, 2)))
    assert (cache.plan.capacity, cache.plan.rotary_positions) == (19, 54)
    assert cache.plan.num_bytes == 2 * (23 + 51) * 2 * 2 * 4 * 8  # the window, and the whole texts
    cache.values_LCHSD[:] = torch.arange(cache.plan.stored_positions).double()[:, None]
    cache.keys_LCHSD[:] = -cache.values_LCHSD
    cache.extend([0, 1], [19, 10])
    cache.slide(0, 3)  # of 22 positions, 2 to 5 are hidden
    cache.slide(1, 9)
    assert (cache.lengths, cache.text_lengths_of([0, 1])) == ([15, 10], [19, 10])
    assert cache.values_LCHSD[0, 0, 1, :15, 2].tolist() == [0, 1, *range(6, 19)]
    assert cache.keys_LCHSD[0, 0, 0, :4, 0].tolist() == [0, -1, -6, -7]
    assert cache.values_LCHSD[0, 1, 1, :10, 2].tolist() == list(range(10))
    copied = cache.copy(0, 19)
    cache.reset(0)
    assert cache.text_lengths_of([0]) == [0]
    cache.paste(0, copied, 19)
    assert cache.lengths[0] == 19
    assert cache.values_LCHSD[0, 0, 0, :19, 0].tolist() == list(range(19))


def test_a_window_that_holds_the_longest_text_changes_nothing() -> None:
    head = HEADS[0]
    whole = head.plan(1, LENGTH, 3)
    assert whole.within(Window(80, 4)) == whole.within(None) == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eagle3:window=0", "window=0 must be between 1 and 1000000"),
        ("eagle3:sinks=4", "sinks=4 belongs to a window; set window=512 too, or leave sinks out"),
        ("hybrid:drafter=ngram,window=9", "drafter=ngram reads the whole text; leave window=9 out"),
        ("peagle:window=9,sinks=2000", "sinks=2000 must be between 0 and 1024"),
        ("ngram:window=9", "method 'ngram' has no setting 'window'"),
    ],
)
def test_wrong_windows_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^" + message):
        method_specs([text])


def test_a_window_is_written_as_a_setting_and_a_hybrid_hands_it_on() -> None:
    [spec] = method_specs(["eagle3:window=512,sinks=8"])
    assert spec.settings == {"window": 512, "sinks": 8}
    assert HybridConfig(window=7).window == 7
    assert Eagle3Proposer(HEADS[0], Eagle3Config(window=512)).window == Window(512, 4)


def test_heads_of_several_layers_have_no_window() -> None:
    head = head_of(random_checkpoint(TARGET, 5), TARGET)
    with pytest.raises(
        ConfigError, match="window=9 works with heads of one layer, and this one has 2; leave window out"
    ):
        Eagle3Proposer(head, Eagle3Config(window=9))


def test_several_modules_have_no_window() -> None:
    modules = random_modules(TARGET, 2, "normed", 0)
    with pytest.raises(ConfigError, match="window=9 works with one module, and DIR has 2; leave window out"):
        MtpProposer(TARGET, modules, MtpConfig(checkpoint="DIR", window=9))
