"""Rounding to 8 and 4 bits keeps its error bounds for all weights, checked against the formulas in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from outrider.errors import CheckpointError
from outrider.ops.quantised import dequantised
from outrider.ops.rounding import FORMATS, Kind, round_rows

SMALLEST = 2.0**-24  # the smallest positive number of fp16


def draw(seed: int, exponent: float, heavy: bool) -> NDArray[np.float32]:
    """Some rows of weights of magnitude 10 ** exponent, with empty groups, lone weights and outliers among them."""
    random = np.random.default_rng(seed)
    weights = random.standard_t(2, (6, 96)) if heavy else random.standard_normal((6, 96))
    weights[0, :32] = 0
    weights[1, 32:64] = 0
    weights[1, 40] = random.standard_normal()
    weights[2] *= 10.0 ** random.integers(-6, 2, 96)
    return np.clip(weights * 10.0**exponent, -450_000, 450_000).astype(np.float32)


WEIGHTS = st.builds(draw, st.integers(0, 2**32), st.floats(-12, 5), st.booleans())


def values(weights: NDArray[np.float32], kind: Kind) -> NDArray[np.float64]:
    return dequantised(FORMATS[kind], round_rows(weights, kind, "w")).astype(np.float64)


@given(WEIGHTS)
@settings(max_examples=200, deadline=None)
def test_int8_is_off_by_half_a_scale_at_most(weights: NDArray[np.float32]) -> None:
    rows = round_rows(weights, "int8", "w")
    assert rows.codes_OF.dtype == np.uint8
    assert rows.scales_OG.dtype == np.float16
    assert rows.codes_OF.min() >= 1
    largest = np.abs(weights.astype(np.float64)).reshape(6, 3, 32).max(axis=2)
    wanted, scales = largest / 127, rows.scales_OG.astype(np.float64)
    # max|w| / 127 in fp16: within one part in 2048, or within one step of the subnormal numbers
    assert (np.abs(scales - wanted) <= np.maximum(wanted / 2000, SMALLEST)).all()
    assert ((scales == 0) == (largest == 0)).all()
    errors = np.abs(weights - values(weights, "int8")).reshape(6, 3, 32)
    assert (errors <= scales[:, :, None] * (0.5 + 1e-5)).all()


def plain_errors(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """The squared error of each group under Q4_0's own rule: the extreme weight becomes -8."""
    groups = weights.reshape(-1, 32)
    extremes = groups[np.arange(len(groups)), np.abs(groups).argmax(axis=1)]
    scales = (extremes / np.float32(-8)).astype(np.float16).astype(np.float64)[:, None]
    exact = groups.astype(np.float64)
    codes = np.clip(np.rint(np.divide(exact, scales, out=np.zeros_like(exact), where=scales != 0)), -8, 7)
    errors: NDArray[np.float64] = ((exact - codes * scales) ** 2).sum(axis=1)
    return errors


@given(WEIGHTS)
@settings(max_examples=200, deadline=None)
def test_int4_is_never_worse_than_the_plain_rule(weights: NDArray[np.float32]) -> None:
    rows = round_rows(weights, "int4", "w")
    assert rows.codes_OF.max() <= 15
    assert rows.scales_OG.dtype == np.float16
    errors = ((weights - values(weights, "int4")) ** 2).reshape(-1, 32).sum(axis=1)
    assert (errors <= plain_errors(weights) * (1 + 1e-4)).all()


def test_int4_searches_better_than_the_plain_rule() -> None:
    weights = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    assert ((weights - values(weights, "int4")) ** 2).sum() < 0.9 * plain_errors(weights).sum()


def test_int4_is_close_to_the_best_scale_there_is() -> None:
    weights = np.random.default_rng(2).standard_normal((8, 32)).astype(np.float32)
    found = ((weights - values(weights, "int4")) ** 2).sum(axis=1)
    exact = weights.astype(np.float64)
    for row, error in zip(exact, found, strict=True):
        scales = np.linspace(-np.abs(row).max() / 5, np.abs(row).max() / 5, 4001)[:, None]  # none of them is 0
        scales = scales[np.abs(scales[:, 0]) > 1e-9]
        codes = np.clip(np.rint(row / scales), -8, 7)
        best = ((row - codes * scales) ** 2).sum(axis=1).min()
        assert error <= 1.12 * best


def test_exact_values_come_back_as_they_are() -> None:
    codes = np.random.default_rng(3).integers(-8, 8, (4, 64))
    codes[:, ::32] = -8
    weights = (codes * 0.03125).astype(np.float32)
    assert (values(weights, "int4") == weights).all()
    wide = np.random.default_rng(3).integers(-127, 128, (4, 64))
    wide[:, ::32] = 127
    assert (values((wide * 0.5).astype(np.float32), "int8") == wide * 0.5).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_zeros_stay_zeros_and_vanishing_weights_do_not_grow(kind: Kind) -> None:
    assert (values(np.zeros((2, 64), np.float32), kind) == 0).all()
    tiny = np.full((2, 64), 1e-30, np.float32)
    tiny[0, 0] = -1e-9
    assert np.abs(values(tiny, kind) - tiny).max() <= 1e-9
    assert values(np.zeros((0, 64), np.float32), kind).shape == (0, 64)


@pytest.mark.parametrize(("kind", "limit"), [("int8", 65504 * 127), ("int4", 65504 * 7)])
def test_a_weight_beyond_fp16_scales_is_refused_and_the_largest_is_not(kind: Kind, limit: int) -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, 3] = limit
    assert np.isfinite(values(weights, kind)).all()
    assert abs(values(weights, kind)[0, 3] / limit - 1) < 0.01
    weights[0, 3] = -limit * 1.01
    with pytest.raises(
        CheckpointError, match=f"w holds a weight of magnitude .* that {kind} with fp16 scales"
    ) as caught:
        round_rows(weights, kind, "w")
    assert "\n" not in str(caught.value)


def test_many_rows_are_rounded_as_few_are() -> None:
    weights = np.random.default_rng(4).standard_normal((300, 4096)).astype(np.float32)
    whole = round_rows(weights, "int4", "w")
    part = round_rows(weights[170:190], "int4", "w")
    assert (whole.codes_OF[170:190] == part.codes_OF).all()
    assert (whole.scales_OG[170:190] == part.scales_OG).all()
