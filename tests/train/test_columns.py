"""Which tokens are learnt, and what the target says about them."""

import pytest
import torch

from outrider.data.texts import Corpus
from outrider.errors import ConfigError
from outrider.testing import tiny_target
from outrider.train.objective import Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.losses import LOSSES

STATES_RE = torch.linspace(-1, 1, 48).view(3, 16)


def teacher() -> Teacher:
    return Teacher.of(tiny_target(), "cpu")


def test_the_worked_example() -> None:
    columns = Columns(torch.tensor([2, 5, 7]), 31, "cpu")
    assert columns.of(torch.tensor([5, 3])).tolist() == [1, -1]
    assert columns.tokens(torch.tensor([0, 2])).tolist() == [2, 7]
    assert columns.rows(torch.arange(31)[:, None]).flatten().tolist() == [2, 5, 7]


def test_all_columns_are_none_at_all() -> None:
    columns = Columns(torch.arange(31), 31, "cpu")
    assert columns.ids_K is None
    assert columns.of(torch.tensor([30])).tolist() == columns.tokens(torch.tensor([30])).tolist() == [30]


def test_a_token_without_a_column_is_learnt_by_losses_that_know_of_it() -> None:
    columns, tokens_R = Columns(torch.tensor([2, 5]), 31, "cpu"), torch.tensor([2, 3])
    found = {kind: columns.learnable(kind, tokens_R).tolist() for kind in LOSSES}
    assert found == {"ce": [True, False], "kl": [True, False], "tv": [True, True], "log_alpha": [True, True]}


def test_the_target_says_no_more_than_is_needed() -> None:
    columns, some = Columns(torch.tensor([2, 5, 7]), 31, "cpu"), teacher()
    assert columns.teach("ce", some, STATES_RE) is None
    among_RK, of_all_RK = (columns.teach(kind, some, STATES_RE) for kind in ("kl", "tv"))
    assert among_RK is not None
    assert of_all_RK is not None
    torch.testing.assert_close(among_RK.exp().sum(-1), torch.ones(3))
    assert bool((of_all_RK.exp().sum(-1) < 0.9).all())
    torch.testing.assert_close(of_all_RK.log_softmax(-1), among_RK)
    with torch.no_grad():
        for kind in ("ce", "kl", "tv"):
            torch.testing.assert_close(columns.teach(kind, some, STATES_RE), of_all_RK)


def test_the_most_frequent_tokens_get_columns() -> None:
    counts_V = torch.zeros(31, dtype=torch.int64)
    counts_V[[4, 9, 30]] = torch.tensor([5, 1, 7])
    corpus = Corpus(counts_V=counts_V, num_tokens=13)
    found = Columns.most_frequent(teacher(), corpus, 4).ids_K
    assert found is not None
    assert found.tolist() == [0, 4, 9, 30]
    assert Columns.most_frequent(teacher(), corpus, 0).num_columns == 31
    with pytest.raises(ConfigError, match="draft_vocab=32 exceeds the target's 31 tokens"):
        Columns.most_frequent(teacher(), corpus, 32)
