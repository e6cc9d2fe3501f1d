"""Chunks change memory, never the result."""

import pytest
import torch

from outrider.data.texts import Example
from outrider.testing import tiny_target
from outrider.train.batch import collate
from outrider.train.objective import Teacher
from outrider.train.objectives import scoring
from outrider.train.objectives.columns import Columns


@pytest.mark.parametrize("with_features", [False, True])
def test_many_chunks_give_what_one_gives(with_features: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher.of(tiny_target(), "cpu")
    torch.manual_seed(0)
    features_RF = torch.randn(10, 16) if with_features else None
    tokens_R = torch.randint(31, (10,))
    found = []
    for chunk in (1024, 4):
        monkeypatch.setitem(scoring.CHUNK_LIMITS, "cpu", scoring.ChunkLimits(chunk, chunk))
        states_RE = torch.linspace(-1, 1, 160).view(10, 16).requires_grad_()
        kind = "kl" if with_features else "ce"
        scorer = scoring.Scorer(kind, teacher, Columns(None, 31, "cpu"))
        scores = scorer.score(states_RE, teacher.head_VE, tokens_R, features_RF)
        scores.loss_R.sum().backward()
        assert scores.overlap_R is None
        with torch.no_grad():
            scores = scorer.score(states_RE, teacher.head_VE, tokens_R, features_RF)
        assert (scores.overlap_R is None) != with_features
        overlap_R = torch.zeros(10) if scores.overlap_R is None else scores.overlap_R
        assert states_RE.grad is not None
        found.append((scores.loss_R.detach(), scores.guess_R, overlap_R, states_RE.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert found[0][3].abs().max() > 0


def test_a_text_weighs_as_much_as_another() -> None:
    means = scoring.mean_by_text(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2, 4, 2]))
    assert means.total.item() == pytest.approx(7.0)
    assert means.num_texts == 2


def test_a_batch_without_learnt_tokens_costs_nothing() -> None:
    teacher = Teacher.of(tiny_target(), "cpu")
    states_RE = torch.zeros(0, 16, requires_grad=True)
    scorer = scoring.Scorer("ce", teacher, Columns(None, 31, "cpu"))
    scores = scorer.score(states_RE, teacher.head_VE, torch.zeros(0, dtype=torch.int64), None)
    means = scores.mean_by_text(torch.zeros(0, dtype=torch.int64))
    means.total.backward()
    assert means == (0.0, 0)


def test_the_worked_example_of_chains() -> None:
    learn_T = torch.tensor([False, False, True, True, False, True])
    chained = collate([[Example(torch.zeros(6, dtype=torch.int64), learn_T)]], 8).written_ahead(8, 1)
    assert chained[0, 0].nonzero().flatten().tolist() == [1, 2, 4]
    assert chained[1, 0].nonzero().flatten().tolist() == [1]
    assert not chained[2:].any()


def test_a_reduced_vocabulary_is_all_that_is_guessed_and_learnt() -> None:
    teacher, some = Teacher.of(tiny_target(), "cpu"), torch.tensor([2, 5, 7])
    torch.manual_seed(0)
    states_RE, tokens_R = torch.randn(20, 16), torch.arange(20) % 9
    scores = scoring.Scorer("kl", teacher, Columns(some, 31, "cpu")).score(
        states_RE, teacher.head_VE, tokens_R, states_RE
    )
    assert set(scores.guess_R.tolist()) <= {2, 5, 7}
    assert scores.learnt_R.tolist() == [token in (2, 5, 7) for token in tokens_R.tolist()]
    log_q_RK = (states_RE @ teacher.head_VE[some].T).log_softmax(-1)  # the drafter is the target
    torch.testing.assert_close(scores.loss_R, -(log_q_RK.exp() * log_q_RK).sum(-1))
