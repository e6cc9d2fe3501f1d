"""Packing: nothing lost, nothing seen across texts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider.data.texts import Example
from outrider.train.batch import Batch, collate, fill_rows


def example(length: int, start: int, width: int = 0) -> Example:
    tokens = torch.arange(start, start + length)
    features = torch.randn(length, width) if width else None
    return Example(tokens, tokens % 2 == 0, features)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_every_text_gets_a_row_that_it_fits(lengths: list[int]) -> None:
    rows = fill_rows(lengths, 12)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 12 for row in rows)


def test_a_packed_row() -> None:
    batch = collate([[example(3, 1), example(2, 10)], [example(4, 20)]], row_length=8)
    assert batch.tokens_BL.tolist() == [[1, 2, 3, 10, 11], [20, 21, 22, 23, 0]]
    assert batch.segments_BL.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]]
    assert batch.positions_BL.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch.learn_BL.tolist() == [[False, True, False, True, False], [True, False, True, False, False]]


def test_shifts_stay_within_a_text() -> None:
    batch = collate([[example(3, 1), example(2, 10)]], row_length=8)
    assert batch.shifted(batch.tokens_BL, 1, fill=-1).tolist() == [[2, 3, -1, 11, -1]]
    assert batch.within(2).tolist() == [[True, False, False, False, False]]
    features = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    assert batch.shifted(features, 1)[0, :, 0].tolist() == [1.0, 2.0, 0.0, 4.0, 0.0]


def test_a_position_sees_its_own_text_only() -> None:
    batch = collate([[example(2, 1), example(1, 10)], [example(1, 5)]], row_length=4)
    assert batch.causal_BLL()[0].tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert bool(batch.causal_BLL().any(-1).all())


def test_features_travel_with_their_text() -> None:
    examples = [example(3, 1, width=2), example(2, 10, width=2)]
    batch: Batch = collate([examples], row_length=8)
    assert batch.features_BLF is not None
    wanted = torch.cat([e.features_TF for e in examples if e.features_TF is not None])
    assert torch.equal(batch.features_BLF[0], wanted)
