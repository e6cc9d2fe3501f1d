"""Committing moves exactly the accepted rows together; whatever else lies in the cache is never read again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft, Tree
from outrider.placement import place_chunk, place_draft, place_real_rows
from outrider.testing import tiny_target

PLAN = CachePlan(num_layers=2, num_slots=3, num_kv_heads=2, head_dim=4, capacity=40, tail=9, dtype=torch.float64)
TARGET = tiny_target(3, vocab_size=11, max_positions=64)

tokens = st.integers(0, 10)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any tree of at most 8 nodes whose siblings differ."""
    tree = Tree([], [])
    for _ in range(draw(st.integers(0, 8))):
        parent, token = draw(st.integers(-1, len(tree.tokens) - 1)), draw(tokens)
        if (parent, token) not in zip(tree.parents, tree.tokens, strict=True):
            tree.tokens.append(token)
            tree.parents.append(parent)
    return tree


@st.composite
def paths(draw: st.DrawFn, tree: Tree) -> list[int]:
    """Rows of any path that starts below the root."""
    children, path, row = tree.children(), [], 0
    while children[row] and draw(st.booleans()):
        row = draw(st.sampled_from(children[row]))
        path.append(row)
    return path


def numbered(cache: KVCache) -> None:
    """Every cached number differs, so that a moved position is recognised."""
    count = cache.keys_LCHSD.numel()
    cache.keys_LCHSD.copy_(torch.arange(count).reshape(cache.keys_LCHSD.shape))
    cache.values_LCHSD.copy_(-cache.keys_LCHSD)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_commit_keeps_the_root_and_the_path_in_order(data: st.DataObject) -> None:
    cache = KVCache(PLAN)
    numbered(cache)
    batch = data.draw(st.lists(trees(), min_size=2, max_size=2))
    kept = [data.draw(paths(tree)) for tree in batch]
    slots, lengths = [2, 0], [data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))]
    for slot, length in zip(slots, lengths, strict=True):
        cache.lengths[slot] = length
    before_KLCHSD = torch.stack((cache.keys_LCHSD, cache.values_LCHSD))
    cache.commit(slots, kept)
    after_KLCHSD = torch.stack((cache.keys_LCHSD, cache.values_LCHSD))
    for slot, length, path in zip(slots, lengths, kept, strict=True):
        source = [*range(length), *(length + row for row in [0, *path])]
        assert cache.lengths[slot] == len(source)
        assert torch.equal(after_KLCHSD[:, :, slot, :, : len(source)], before_KLCHSD[:, :, slot, :, source])
    assert cache.lengths[1] == 0
    assert torch.equal(after_KLCHSD[:, :, 1], before_KLCHSD[:, :, 1])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_after_commits_the_cache_equals_a_fresh_prefill(data: st.DataObject) -> None:
    """C5: random trees and random accepted paths, two slots, several steps."""
    session = TARGET.open(TARGET.plan(2, 60, tail=9))
    texts = [data.draw(st.lists(tokens, min_size=1, max_size=6)) for _ in range(2)]
    session.prefill([0, 1], [text[:-1] for text in texts])
    for _ in range(data.draw(st.integers(1, 3))):
        batch = [data.draw(trees()) for _ in range(2)]
        session.forward([0, 1], [text[-1] for text in texts], Draft.of_trees(batch))
        kept = [data.draw(paths(tree)) for tree in batch]
        session.cache.commit([0, 1], kept)
        for text, tree, path in zip(texts, batch, kept, strict=True):
            text += [*(tree.tokens[row - 1] for row in path), data.draw(tokens)]
    fresh = TARGET.open(TARGET.plan(2, 60, tail=9))
    fresh.prefill([0, 1], [text[:-1] for text in texts])
    assert session.cache.lengths == fresh.cache.lengths == [len(text) - 1 for text in texts]
    for slot, text in enumerate(texts):
        for ours, theirs in (
            (session.cache.keys_LCHSD, fresh.cache.keys_LCHSD),
            (session.cache.values_LCHSD, fresh.cache.values_LCHSD),
        ):
            kept_LHSD, want_LHSD = (cached[:, slot, :, : len(text) - 1] for cached in (ours, theirs))
            torch.testing.assert_close(kept_LHSD, want_LHSD, rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(trees(), min_size=1, max_size=3), length=st.integers(0, 30))
def test_a_draft_is_placed_behind_the_length_and_its_padding_in_the_trash(batch: list[Tree], length: int) -> None:
    cache = KVCache(PLAN)
    slots = list(range(len(batch)))
    cache.lengths = [length + slot for slot in range(3)]
    draft = Draft.of_trees(batch)
    placement = place_draft(cache, slots, draft)
    assert placement.limit <= cache.trash
    for slot, tree in enumerate(batch):
        start, count = cache.lengths[slot], len(tree.tokens)
        padding = draft.num_rows - 1 - count
        assert placement.write_BM[slot].tolist() == [*range(start, start + count + 1)] + [cache.trash] * padding
        assert placement.positions_BM[slot, : count + 1].tolist() == [start, *(start + d for d in tree.depths())]
        assert not placement.mask_BMT[slot, :, count + 1 :].any()


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(trees(), min_size=1, max_size=3), length=st.integers(0, 30))
def test_rows_placed_without_padding_are_those_placed_with_it(batch: list[Tree], length: int) -> None:
    cache = KVCache(PLAN)
    slots = [2, 0, 1][: len(batch)]
    cache.lengths = [length + slot for slot in range(3)]
    draft = Draft.of_trees(batch)
    want = place_draft(cache, slots, draft).only(torch.tensor(draft.real_rows))
    got = place_real_rows(cache, slots, draft)
    assert want.mask_BMT is not None
    assert got.limit == want.limit
    rows_per_entry = got.positions_BM.shape[1]
    assert got.slots_B.repeat_interleave(rows_per_entry).tolist() == want.slots_B.tolist()
    assert got.lengths_B.repeat_interleave(rows_per_entry).tolist() == want.lengths_B.tolist()
    assert got.positions_BM.flatten().tolist() == want.positions_BM.flatten().tolist()
    assert got.write_BM.flatten().tolist() == want.write_BM.flatten().tolist()
    width = draft.num_rows
    causal_MT = torch.ones(width, width, dtype=torch.bool).tril()
    mask_BMT = causal_MT.repeat(len(slots), 1, 1) if got.mask_BMT is None else got.mask_BMT
    assert torch.equal(mask_BMT.reshape(-1, width), want.mask_BMT[:, 0])


def test_siblings_share_a_position_and_do_not_see_each_other() -> None:
    cache = KVCache(PLAN)
    cache.lengths[1] = 5
    placement = place_draft(cache, [1], Draft.of_trees([Tree([7, 8, 9], [-1, -1, 0])]))
    assert placement.positions_BM.tolist() == [[5, 6, 6, 7]]
    assert placement.mask_BMT[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]


def test_a_ragged_chunk_pads_into_the_trash() -> None:
    cache = KVCache(PLAN)
    cache.lengths = [0, 4, 0]
    placement = place_chunk(cache, [1, 2], [3, 1])
    assert placement.write_BM.tolist() == [[4, 5, 6], [0, cache.trash, cache.trash]]
    assert placement.positions_BM.tolist() == [[4, 5, 6], [0, 0, 0]]
    assert placement.mask_BMT is None
    cache.extend([1, 2], [3, 1])
    assert cache.lengths_of([2, 1, 0]) == [1, 7, 0]


def test_truncate_and_reset_forget_positions_and_touch_nothing_else() -> None:
    cache = KVCache(PLAN)
    numbered(cache)
    before_LCHSD = cache.keys_LCHSD.clone()
    cache.lengths = [9, 7, 5]
    cache.truncate(0, 4)
    cache.reset(2)
    assert cache.lengths == [4, 7, 0]
    assert torch.equal(cache.keys_LCHSD, before_LCHSD)


def test_what_does_not_fit_is_our_own_mistake() -> None:
    cache = KVCache(PLAN)
    with pytest.raises(AssertionError, match="tail"):
        place_draft(cache, [0], Draft.of_chains([[1] * 9]))
    with pytest.raises(AssertionError, match="fit"):
        place_chunk(cache, [0], [PLAN.num_positions])
    with pytest.raises(AssertionError):
        cache.extend([0], [PLAN.capacity + 1])
    with pytest.raises(AssertionError):
        cache.truncate(0, 1)


def test_the_plan_knows_its_bytes_before_anything_is_allocated() -> None:
    cache = KVCache(PLAN)
    assert PLAN.num_bytes == cache.keys_LCHSD.nbytes + cache.values_LCHSD.nbytes
    assert PLAN.bytes_per_slot == PLAN.bytes_per_token * (40 + 9 + 1)
    assert cache.trash == 49
