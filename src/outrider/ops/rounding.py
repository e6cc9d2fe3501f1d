"""Rounding of weights to 8-bit and 4-bit codes, by groups of 32 features with one fp16 scale each.

    int8   w = d * (code - 128)   d = max|w| / 127, as in GGUF's Q8_0; |w - w'| <= d / 2
    int4   w = d * (code - 8)     d of either sign minimises the squared error of the group

The 4-bit search follows the better quantisers of GGUF (`make_qx_quants`): map the weight of largest magnitude m to each
of ten numbers around -8, round the group, and fit the scale by least squares,

    codes q = round(w * k / m),   d = sum(w q) / sum(q q),   squared error = sum(w w) - sum(w q)^2 / sum(q q).

The best of them is rounded to fp16, the codes are rounded again with that scale, and the result is kept if its error
is below that of the plain rule, d = m / -8. On normal weights the squared error is 11 % below the plain rule's.

Example: the group (-1, 0.5, 0, ...) has d = 1/127 and codes 1, 191, 128, ... in 8 bits.

Shapes: O rows, F features, N groups of 32.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from outrider.env import num_kernel_threads
from outrider.errors import CheckpointError
from outrider.ops.quantised import Matrix, QuantFormat, QuantisedMatrix, QuantRows

__all__ = ["FORMATS", "GROUP", "Kind", "RoundedMatrix", "round_rows", "rounded"]

Kind = Literal["int8", "int4"]
Array = NDArray[np.float32]

GROUP: Final = 32
FORMATS: Final[Mapping[Kind, QuantFormat]] = {
    "int8": QuantFormat(name="int8", bits=8, offset=128),
    "int4": QuantFormat(name="int4", bits=4, offset=8),
}
LARGEST_SCALE: Final = float(np.finfo(np.float16).max)
MOST_WEIGHTS: Final = 2**18
"""Weights rounded at once, so that all arrays of the search stay in a core's cache."""
CANDIDATES: Final = tuple(-(7.1 + 0.2 * step) for step in range(10))
"""Codes, before rounding, that the weight of largest magnitude is mapped to in the search."""


class _Rounded(NamedTuple):
    """Codes minus their offset, and scales in fp16."""

    numbers_N32: Array
    scales_N: NDArray[np.float16]


@final
class RoundedMatrix(QuantisedMatrix):
    """A matrix of plain numbers, rounded when its rows are read; F is a multiple of 32."""

    def __init__(self, weight_OF: Tensor, kind: Kind) -> None:
        self._weight_OF = weight_OF.detach()
        self._kind = kind

    @property
    def format(self) -> QuantFormat:
        return FORMATS[self._kind]

    @property
    def shape(self) -> tuple[int, int]:
        num_rows, num_features = self._weight_OF.shape
        return num_rows, num_features

    def rows(self, start: int, stop: int) -> QuantRows:
        return round_rows(self._weight_OF[start:stop].float().numpy(), self._kind, "a matrix")


def rounded(weight_OF: Matrix, kind: Kind) -> Matrix:
    """Return a matrix that is rounded when it is read; unchanged if it is quantised, or cannot be rounded."""
    if isinstance(weight_OF, QuantisedMatrix) or weight_OF.shape[1] % GROUP:
        return weight_OF
    largest = float(weight_OF.detach().abs().amax()) if weight_OF.numel() else 0.0
    return RoundedMatrix(weight_OF, kind) if largest <= _limit(kind) else weight_OF  # not with NaN either


def _limit(kind: Kind) -> float:
    """Return the largest magnitude that a kind can hold."""
    return LARGEST_SCALE * (127 if kind == "int8" else 7)


def round_rows(weights_OF: Array, kind: Kind, what: str) -> QuantRows:
    """Return the codes and scales of some rows; F is a multiple of 32 and the weights are finite.

    Args:
        what: the tensor's name, for messages.

    Raises:
        CheckpointError: for a weight whose scale does not fit in fp16.
    """
    (num_rows, num_features), format = weights_OF.shape, FORMATS[kind]
    largest = float(np.abs(weights_OF).max(initial=0.0))
    limit = _limit(kind)
    if largest > limit:
        raise CheckpointError(
            f"{what} holds a weight of magnitude {largest:.3g}, above the {limit:.3g} that {kind} with fp16 scales can"
            " hold; load this model with weights='bf16'"
        )
    codes_OF = np.empty((num_rows, num_features), np.uint8)
    scales_OG = np.empty((num_rows, num_features // GROUP), np.float16)
    step = max(1, MOST_WEIGHTS // max(1, num_features))

    def round_part(start: int) -> None:
        part = slice(start, start + step)
        rounded = RULES[kind](weights_OF[part].reshape(-1, GROUP))
        codes_OF[part] = (rounded.numbers_N32 + np.float32(format.offset)).reshape(-1, num_features)
        scales_OG[part] = rounded.scales_N.reshape(-1, num_features // GROUP)

    # numpy lets other threads run inside its loops
    with ThreadPoolExecutor(num_kernel_threads() or os.cpu_count()) as pool:
        list(pool.map(round_part, range(0, num_rows, step)))
    return QuantRows(codes_OF=codes_OF, scales_OG=scales_OG)


def _round_int8(weights_N32: Array) -> _Rounded:
    largest_N = np.abs(weights_N32).max(axis=1)
    scales_N = (largest_N / np.float32(127)).astype(np.float16)
    # fp16's subnormals are coarse: a scale that was rounded down must not push the largest weight out of the codes
    too_small_N = scales_N.astype(np.float32) * np.float32(127.5) < largest_N
    scales_N[too_small_N] = np.nextafter(scales_N[too_small_N], np.float16(np.inf))
    return _Rounded(_divided(weights_N32, scales_N, -127, 127), scales_N)


def _round_int4(weights_N32: Array) -> _Rounded:
    extreme_N1: Array = np.take_along_axis(weights_N32, np.abs(weights_N32).argmax(axis=1)[:, None], axis=1)
    # normalised to at most 1, so that squares neither overflow nor vanish
    units_N32 = (weights_N32 / np.where(extreme_N1 == 0, 1, extreme_N1)).astype(np.float32)
    plain = _with_scale(weights_N32, extreme_N1[:, 0] / np.float32(-8))
    fitted = _with_scale(weights_N32, extreme_N1[:, 0] * _fit(units_N32))
    better_N = _errors(weights_N32, fitted, extreme_N1) < _errors(weights_N32, plain, extreme_N1)
    return _Rounded(
        np.where(better_N[:, None], fitted.numbers_N32, plain.numbers_N32),
        np.where(better_N, fitted.scales_N, plain.scales_N),
    )


def _fit(units_N32: Array) -> Array:
    """Return per group the scale with the smallest squared error among those that the candidates lead to."""
    best_N = np.full(len(units_N32), -1, np.float32)
    scales_N = np.zeros(len(units_N32), np.float32)
    numbers_N32 = np.empty_like(units_N32)
    for candidate in CANDIDATES:
        np.multiply(units_N32, np.float32(candidate), out=numbers_N32)
        np.rint(numbers_N32, out=numbers_N32)
        np.clip(numbers_N32, -8, 7, out=numbers_N32)
        products_N = np.einsum("ng,ng->n", units_N32, numbers_N32)
        squares_N = np.maximum(np.einsum("ng,ng->n", numbers_N32, numbers_N32), np.float32(1))  # 0 in empty groups
        gains_N = products_N * products_N / squares_N
        is_better_N = gains_N > best_N
        np.copyto(best_N, gains_N, where=is_better_N)
        np.copyto(scales_N, products_N / squares_N, where=is_better_N)
    return scales_N


def _with_scale(weights_N32: Array, wanted_N: Array) -> _Rounded:
    scales_N = np.clip(wanted_N, -LARGEST_SCALE, LARGEST_SCALE).astype(np.float16)
    return _Rounded(_divided(weights_N32, scales_N, -8, 7), scales_N)


def _divided(weights_N32: Array, scales_N: NDArray[np.float16], low: int, high: int) -> Array:
    """Return weights divided by their group's scale, rounded and cut to the codes' range; 0 where the scale is 0."""
    divisors_N = np.where(scales_N == 0, np.float32(np.inf), scales_N.astype(np.float32))
    numbers_N32: Array = np.rint(weights_N32 / divisors_N[:, None])
    return np.clip(numbers_N32, low, high, out=numbers_N32)


def _errors(weights_N32: Array, rounded: _Rounded, extreme_N1: Array) -> Array:
    """Return per group the squared error, in units of the largest magnitude squared."""
    residues_N32 = weights_N32 - rounded.numbers_N32 * rounded.scales_N.astype(np.float32)[:, None]
    residues_N32 /= np.where(extreme_N1 == 0, np.float32(1), extreme_N1)
    errors_N: Array = np.einsum("ng,ng->n", residues_N32, residues_N32)
    return errors_N


RULES: Final[Mapping[Kind, Callable[[Array], _Rounded]]] = {"int8": _round_int8, "int4": _round_int4}
