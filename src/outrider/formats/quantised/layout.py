"""The seam between stored layouts and quantised matrices: codes, scales and zero points by ranges of rows.

    w[o, f] = scale[o, g] * (code[o, f] - zero_point[o, g])        g = f // group

A layout checks names, dtypes and shapes from the file's header when it is opened. `PublishedMatrix` makes a
`QuantisedMatrix` of it: scales repeat so that every 32 features have one; zero points that are all the same number
become the format's offset, others become minima `-zero_point * scale` in fp32.

Example: AWQ with groups of 128 gives each scale four times, and minima, since its zero points differ.

Shapes: O output features (rows), F input features, R rows read, G = F / group.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from outrider.errors import CheckpointError
from outrider.formats.quantised.packing import Bits
from outrider.formats.quantised.parts import part, require_dtype
from outrider.formats.weights import StoredTensor, Weights, check_finite
from outrider.models.quant_scheme import QuantScheme
from outrider.ops.quantised import QuantFormat, QuantisedMatrix, QuantRows

__all__ = ["SCALES", "Layout", "Opened", "PublishedMatrix", "Sizes", "check_scheme", "find", "read_scales", "sizes_of"]

GROUP = 32
SCALES = ("F16", "BF16", "F32")
LARGEST_SCALE = 1e36
"""Largest magnitude of a scale whose products with codes of 8 bits are finite in fp32."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows and features of a matrix, bits of a code, and features with one scale."""

    num_rows: int
    num_features: int
    bits: Bits
    group: int

    @property
    def num_groups(self) -> int:
        """Scales of a row."""
        return self.num_features // self.group


class Layout(ABC):
    """One matrix as a file holds it."""

    @abstractmethod
    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read codes [R, F]."""

    @abstractmethod
    def scales(self, start: int, stop: int) -> NDArray[np.generic]:
        """Read scales [R, G], fp16 or fp32 and finite."""

    @abstractmethod
    def zero_points(self, start: int, stop: int) -> NDArray[np.int16]:
        """Read zero points [R, G]; with one number for all, no file is read."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A matrix that was found in a file: its layout, its sizes, and all its tensors with the shapes they must have."""

    layout: Layout
    sizes: Sizes
    tensors: Mapping[str, tuple[int, ...]]


@final
class PublishedMatrix(QuantisedMatrix):
    """A matrix of a published checkpoint."""

    def __init__(self, opened: Opened, method: str) -> None:
        self._layout = opened.layout
        self._sizes = opened.sizes
        self._method = method

    @property
    def shape(self) -> tuple[int, int]:
        return self._sizes.num_rows, self._sizes.num_features

    @cached_property
    def format(self) -> QuantFormat:
        """Format of all rows; reading it reads all zero points and one row of scales."""
        zeros_OG = self._layout.zero_points(0, self.shape[0])
        first, bits = int(zeros_OG.flat[0]), self._sizes.bits
        if not (zeros_OG == first).all():
            return QuantFormat(name=self._method, bits=bits, scales="f32", has_minima=True)
        is_fp16 = self._layout.scales(0, 1).dtype == np.float16
        return QuantFormat(name=self._method, bits=bits, offset=first, scales="f16" if is_fp16 else "f32")

    def rows(self, start: int, stop: int) -> QuantRows:
        repeats = self._sizes.group // GROUP
        codes_RF, scales_RG = self._layout.codes(start, stop), self._layout.scales(start, stop)
        if not self.format.has_minima:
            return QuantRows(codes_OF=codes_RF, scales_OG=scales_RG.repeat(repeats, axis=1))
        wide_RG = scales_RG.astype(np.float32)
        minima_RG = wide_RG * -self._layout.zero_points(start, stop).astype(np.float32)
        return QuantRows(
            codes_OF=codes_RF,
            scales_OG=wide_RG.repeat(repeats, axis=1),
            minima_OG=minima_RG.repeat(repeats, axis=1),
        )


def find(weights: Weights, name: str, dtypes: Collection[str], num_axes: int = 2) -> StoredTensor:
    """Return a tensor's entry; refuse a missing one, another dtype, and another number of axes."""
    shape = weights.shape(name)
    stored = weights.stored[name]
    require_dtype(stored, dtypes)
    if len(shape) != num_axes:
        raise CheckpointError(
            f"tensor {name} in {stored.file} has shape {shape}, expected {num_axes} axes; check that config.json"
            " belongs to these weights"
        )
    return stored


def sizes_of(
    codes: StoredTensor, shape: tuple[int, int], num_words: int, scales: StoredTensor, num_groups: int
) -> Sizes:
    """Derive a matrix's sizes from how many words and scales its rows have.

    Args:
        shape: rows and features that the model has.
        num_words: 32-bit words of a row's codes.
        num_groups: scales of a row.

    Raises:
        CheckpointError: if the numbers do not belong to codes of 4 or 8 bits and groups of whole blocks of 32.
    """
    (num_rows, num_features), bits = shape, 8
    if num_features % GROUP:
        raise CheckpointError(
            f"the matrix of tensor {codes.name} in {codes.file} has {num_features} features, which is no multiple of"
            f" {GROUP}; use the original checkpoint"
        )
    if num_words * 8 == num_features:
        bits = 4
    elif num_words * 4 != num_features:
        raise CheckpointError(
            f"tensor {codes.name} in {codes.file} has shape {codes.shape}, which holds no {num_rows} x {num_features}"
            " codes of 4 or 8 bits; check that config.json belongs to these weights"
        )
    if not num_groups or num_features % num_groups or num_features // num_groups % GROUP:
        raise CheckpointError(
            f"tensor {scales.name} in {scales.file} has shape {scales.shape}, which gives {num_features} features no"
            f" groups of whole blocks of {GROUP}; check that config.json belongs to these weights"
        )
    group = num_features // num_groups
    return Sizes(num_rows=num_rows, num_features=num_features, bits=4 if bits == 4 else 8, group=group)


def check_scheme(codes: StoredTensor, sizes: Sizes, scheme: QuantScheme) -> None:
    """Refuse sizes that `quantization_config` does not have."""
    # one scale for a row has the same tensors as a group as wide as the matrix
    own = {(sizes.bits, sizes.group)} | ({(sizes.bits, None)} if sizes.num_groups == 1 else set())
    if scheme.sizes and not own & scheme.sizes:
        known = " or ".join(
            f"{bits} bits and {'one scale for a row' if group is None else f'groups of {group}'}"
            for bits, group in sorted(scheme.sizes, key=str)
        )
        raise CheckpointError(
            f"tensor {codes.name} in {codes.file} has {sizes.bits} bits and groups of {sizes.group}, but config.json"
            f" says {known}; check that config.json belongs to these weights"
        )


def read_scales(stored: StoredTensor, rows: slice, columns: slice = slice(None)) -> NDArray[np.generic]:
    """Read scales: fp16 as they are, others as fp32.

    Raises:
        CheckpointError: if one is not finite, or too large.
    """
    read = part(stored, rows, columns)
    check_finite(read, f"tensor {stored.name} in {stored.file}")
    numbers: NDArray[np.generic] = (read if read.dtype == torch.float16 else read.to(torch.float32)).numpy()
    largest = float(np.abs(numbers).max(initial=0))
    if largest > LARGEST_SCALE:
        raise CheckpointError(
            f"tensor {stored.name} in {stored.file} holds a scale of magnitude {largest:.3g}, which overflows; the file"
            " is damaged: download it again"
        )
    return numbers
