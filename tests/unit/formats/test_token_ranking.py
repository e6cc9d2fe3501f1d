"""The ranking of tokens beside a checkpoint: what is ranked, what is read back, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from outrider import CheckpointError, ConfigError
from outrider.formats.token_ranking import (
    DRAFT_VOCAB,
    FILE,
    check_draft_vocab,
    drafted_ids,
    rank_tokens,
    read_ranking,
    special_ids,
    write_ranking,
)
from outrider.testing import tiny_target

TARGET = tiny_target(vocab_size=31)


def counts(**some: int) -> torch.Tensor:
    counts_V = torch.zeros(31, dtype=torch.int64)
    for token, count in some.items():
        counts_V[int(token.removeprefix("t"))] = count
    return counts_V


def test_frequent_tokens_come_first_behind_the_special_ones() -> None:
    special = special_ids(TARGET)
    ranked = rank_tokens(TARGET, counts(t5=3, t7=9, t3=3)).tolist()
    assert ranked[: len(special)] == special
    assert [token for token in ranked if token not in special] == [7, 3, 5]


def test_a_ranking_comes_back_and_is_cut(tmp_path: Path) -> None:
    ids_N = torch.tensor([9, 2, 30, 4])
    write_ranking(tmp_path, ids_N, TARGET)
    found = read_ranking(tmp_path, TARGET)
    assert found is not None
    assert torch.equal(found, ids_N)
    for asked, want in ((2, [2, 9]), (4, [2, 4, 9, 30]), (20, [2, 4, 9, 30])):
        cut = drafted_ids(tmp_path, TARGET, asked)
        assert cut is not None
        assert cut.tolist() == want
    assert drafted_ids(tmp_path, TARGET, 0) is None
    assert drafted_ids(tmp_path, TARGET, 31) is None
    assert DRAFT_VOCAB >= 31
    assert drafted_ids(tmp_path, TARGET, None) is None, "a vocabulary below the default stays whole"


def test_without_a_ranking_the_whole_vocabulary_is_drafted(tmp_path: Path) -> None:
    assert drafted_ids(tmp_path, TARGET, None) is None
    assert drafted_ids(tmp_path, TARGET, 0) is None
    with pytest.raises(ConfigError, match=f"draft_vocab=5 needs {FILE} in .* leave draft_vocab out"):
        drafted_ids(tmp_path, TARGET, 5)
    with pytest.raises(ConfigError, match="draft_vocab=-1 must be 0"):
        check_draft_vocab(-1)


def test_a_ranking_of_another_target_is_refused(tmp_path: Path) -> None:
    write_ranking(tmp_path, torch.tensor([1]), TARGET)
    with pytest.raises(CheckpointError, match="was trained for tiny-0, whose embedding differs"):
        read_ranking(tmp_path, tiny_target(5, vocab_size=31))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "outrider.token_ranking/9"}, "has schema 'outrider.token_ranking/9'"),
        ({"vocab_size": 30}, "vocab_size 30 instead of 'outrider.token_ranking/1' and 31; delete it"),
        ({"ids": [1, 31]}, "must be different tokens below 31; delete it"),
        ({"ids": [1, 1]}, "must be different tokens"),
        ({"ids": []}, "must be different tokens"),
        ({"ids": [1, True]}, "must be different tokens"),
        ({"ids": "1 2"}, "must be different tokens"),
    ],
)
def test_a_damaged_ranking_names_what_is_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_ranking(tmp_path, torch.tensor([1, 2]), TARGET)
    content = json.loads((tmp_path / FILE).read_text()) | changes
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read_ranking(tmp_path, TARGET)
