"""Quantised matrices: integer codes with a scale, and perhaps a minimum, for each group of consecutive features.

    w[o, f] = scale[o, g] * (code[o, f] - offset)  + minimum[o, g]       g = f // group
    w[o, f] = scale[o, g] * table[code[o, f]]                            for formats with a table

Every format that people publish is one of these, so weights keep the values of their file. A back end packs the codes
in 4, 5, 6 or 8 bits; scales stay in fp16 where they are, and where a scale is a product of an fp16 number per 256
features and a small integer per group, both factors stay as they are.

A matrix is read by ranges of rows, so that packing needs memory for one range beside the packed weights.

Example: Q4_0 of GGUF has 4-bit codes with offset 8 and an fp16 scale for each group of 32.

Shapes: O output features (rows), F input features, G = F / group, S = F / 256.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "SUPER",
    "Matrix",
    "QuantFormat",
    "QuantRows",
    "QuantisedMatrix",
    "dense",
    "dequantised",
    "kinds_of",
    "reordered",
    "rows_of",
]

SUPER: Final = 256
"""Features that share one factor of a scale in formats with `scales` "super"."""


@dataclass(frozen=True, kw_only=True)
class QuantFormat:
    """Properties that all rows of a matrix share.

    name          as its file names it: "Q4_K", "AWQ"
    bits          bits of a packed code: 4, 5, 6 or 8; codes are below 2 ** bits
    offset        subtracted from every code; 0 with a table or with minima
    table         16 numbers from -127 to 127 that codes of 4 bits stand for; None for none
    group         features with one scale: 16 or 32
    scales        "f16", "f32", or "super": an fp16 number per 256 features times an int8 per group
    has_minima    groups have a minimum, stored as the scales are: f16, f32, or an fp16 number times an uint8
    """

    name: str
    bits: Literal[4, 5, 6, 8]
    offset: int = 0
    table: tuple[int, ...] | None = None
    group: Literal[16, 32] = 32
    scales: Literal["f16", "f32", "super"] = "f16"
    has_minima: bool = False


@dataclass(frozen=True, kw_only=True)
class QuantRows:
    """Some rows of a matrix.

    codes_OF        uint8
    scales_OG       fp16 or fp32; int8 with super-scales
    minima_OG       fp16 or fp32; uint8 with super-scales; None without minima
    supers_OS       fp16: the other factor of the scales; None for formats without
    super_minima_OS   fp16: the other factor of the minima, its sign included (K-quants subtract theirs: -dmin)
    """

    codes_OF: NDArray[np.uint8]
    scales_OG: NDArray[np.generic]
    minima_OG: NDArray[np.generic] | None = None
    supers_OS: NDArray[np.float16] | None = None
    super_minima_OS: NDArray[np.float16] | None = None


class QuantisedMatrix(ABC):
    """A matrix [O, F] of one format, read by ranges of rows. F is a multiple of the group, and of 256 with supers."""

    @property
    @abstractmethod
    def format(self) -> QuantFormat:
        """The format of all rows."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(O, F)."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> QuantRows:
        """Read the rows from `start` to before `stop`.

        Raises:
            CheckpointError: if a scale or a minimum is not finite, or the file cannot be read.
        """


def dequantised(format: QuantFormat, rows: QuantRows) -> NDArray[np.float32]:
    """Return the values [O, F], rounded once to fp32 where a minimum is added."""
    scales_OG = rows.scales_OG.astype(np.float32)
    if rows.supers_OS is not None:
        scales_OG *= rows.supers_OS.astype(np.float32).repeat(SUPER // format.group, axis=1)  # exact: 11 + 8 bits
    if format.table is None:
        numbers_OF = rows.codes_OF.astype(np.float32) - np.float32(format.offset)
    else:
        numbers_OF = np.array(format.table, np.float32)[rows.codes_OF]
    values_OF = numbers_OF * scales_OG.repeat(format.group, axis=1)
    if rows.minima_OG is None:
        return values_OF
    minima_OG = rows.minima_OG.astype(np.float32)
    if rows.super_minima_OS is not None:
        minima_OG *= rows.super_minima_OS.astype(np.float32).repeat(SUPER // format.group, axis=1)
    return values_OF + minima_OG.repeat(format.group, axis=1)


Matrix = Tensor | QuantisedMatrix
"""A weight [O, F] as its file holds it."""


def dense(weight: Matrix | Sequence[Matrix]) -> Tensor:
    """Return the values [O, F] of a matrix, or of several one below the other; quantised ones in fp32."""
    if isinstance(weight, Tensor):
        return weight
    if isinstance(weight, QuantisedMatrix):
        return torch.from_numpy(dequantised(weight.format, weight.rows(0, weight.shape[0])))
    return torch.cat([dense(part) for part in weight])


@final
class _RowsOf(QuantisedMatrix):
    """Some consecutive rows of a matrix."""

    def __init__(self, matrix: QuantisedMatrix, start: int, stop: int) -> None:
        self._matrix = matrix
        self._start = start
        self._stop = stop

    @property
    def format(self) -> QuantFormat:
        return self._matrix.format

    @property
    def shape(self) -> tuple[int, int]:
        return self._stop - self._start, self._matrix.shape[1]

    def rows(self, start: int, stop: int) -> QuantRows:
        return self._matrix.rows(self._start + start, self._start + stop)


def rows_of(matrix: Matrix, start: int, stop: int) -> Matrix:
    """Return the rows from `start` to before `stop` as a matrix of their own; quantised ones are read later."""
    return matrix[start:stop] if isinstance(matrix, Tensor) else _RowsOf(matrix, start, stop)


@final
class _Reordered(QuantisedMatrix):
    """A matrix with its rows in another order, in which neighbours stay near each other."""

    def __init__(self, matrix: QuantisedMatrix, order_O: NDArray[np.int64]) -> None:
        self._matrix = matrix
        self._order_O = order_O

    @property
    def format(self) -> QuantFormat:
        return self._matrix.format

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix.shape

    def rows(self, start: int, stop: int) -> QuantRows:
        if start == stop:
            return self._matrix.rows(start, stop)
        wanted = self._order_O[start:stop]
        first = int(wanted.min())
        span = self._matrix.rows(first, int(wanted.max()) + 1)
        optional = {name: getattr(span, name) for name in ("minima_OG", "supers_OS", "super_minima_OS")}
        return QuantRows(
            codes_OF=span.codes_OF[wanted - first],
            scales_OG=span.scales_OG[wanted - first],
            **{name: None if part is None else part[wanted - first] for name, part in optional.items()},
        )


def reordered(matrix: Matrix, order_O: Tensor) -> Matrix:
    """Return the rows in another order, such as within each head; quantised ones are read later."""
    return matrix[order_O] if isinstance(matrix, Tensor) else _Reordered(matrix, order_O.numpy())


def kinds_of(weights: Mapping[str, Matrix]) -> str:
    """Return the kinds of all matrices, those with the most numbers first: "Q4_1, Q8_0"."""
    sizes: dict[str, int] = {}
    for weight in weights.values():
        if isinstance(weight, QuantisedMatrix):
            kind = weight.format.name
        elif weight.dim() == 2:
            kind = str(weight.dtype).removeprefix("torch.")
        else:
            continue
        sizes[kind] = sizes.get(kind, 0) + math.prod(weight.shape)
    return ", ".join(sorted(sizes, key=lambda kind: -sizes[kind]))
