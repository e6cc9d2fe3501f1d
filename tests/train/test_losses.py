"""Losses against numbers worked out by hand, and the reduced vocabulary."""

import math

import pytest
import torch

from outrider.train.objectives.losses import loss_R, overlap_R

P = torch.tensor([[0.5, 0.5]]).log()
Q = torch.tensor([[0.9, 0.1]]).log()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("ce", -math.log(0.9)),
        ("kl", -0.5 * (math.log(0.9) + math.log(0.1))),
        ("tv", 0.4),
        ("log_alpha", -math.log(0.6)),
    ],
)
def test_the_worked_example(kind: str, value: float) -> None:
    assert loss_R(kind, Q, torch.tensor([0]), P).item() == pytest.approx(value, abs=1e-6)  # type: ignore[arg-type]


def test_probability_outside_the_drafters_vocabulary_is_never_accepted() -> None:
    teacher = torch.tensor([[0.3, 0.2]]).log()  # the other half lies outside
    assert overlap_R(Q, teacher).item() == pytest.approx(0.3 + 0.1)
    same = torch.tensor([[0.6, 0.4]]).log()
    assert loss_R("tv", same, torch.tensor([0]), teacher).item() == pytest.approx(0.5)
    entropy = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert loss_R("kl", same, torch.tensor([0]), teacher).item() == pytest.approx(entropy)
