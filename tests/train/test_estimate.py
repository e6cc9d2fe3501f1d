"""A training run that cannot fit is refused before it begins, with rows that fit."""

import pytest

from outrider.errors import CapacityError
from outrider.train.config import TrainConfig
from outrider.train.estimate import Estimate

ESTIMATE = Estimate(target=100, shared=50, trained=1000, reading=200, features=3000, logits=5000)


@pytest.mark.parametrize(
    ("free", "words", "tokens"),
    [
        (5300, "rows=2 would fit, with accumulation=4 for equal steps", 128),
        (2300, "rows=1 with row_length=35 would fit", 35),
    ],
)
def test_rows_or_a_row_length_that_fit_are_named(free: int, words: str, tokens: int) -> None:
    # a pass of 8 rows x 64 tokens takes 8,000 bytes, 15.625 a token, and as much again is left for activations; weights
    # and reading take 1,200: (5300 - 1200) / 31.25 = 131 tokens, (2300 - 1200) / 31.25 = 35
    config = TrainConfig(rows=8, row_length=64)
    with pytest.raises(CapacityError, match=f"; {words}$") as refused:
        ESTIMATE.check_fits(config, free)
    assert str(refused.value).startswith("rows=8 of row_length=64 need 0.0 MB and activations, and 0.0 MB are free; ")
    smaller = Estimate(**{**vars(ESTIMATE), "features": 3000 * tokens // 512, "logits": 5000 * tokens // 512})
    smaller.check_fits(config, free)


def test_a_run_that_fits_is_left_alone_and_one_that_never_does_is_told() -> None:
    config = TrainConfig(rows=8, row_length=64)
    ESTIMATE.check_fits(config, 9200)
    with pytest.raises(CapacityError, match="no rows fit beside the weights that are trained; use a smaller target"):
        ESTIMATE.check_fits(config, 1250)
