"""Quantised matrices of every format, drawn at random, and activations: shared by tests of the kernels."""

from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from outrider.kernels.cpu.quant_layout import TABLES
from outrider.ops.quantised import QuantFormat, QuantisedMatrix, QuantRows

FORMATS: Final = {
    form.name: form
    for form in (
        QuantFormat(name="Q4_0", bits=4, offset=8),
        QuantFormat(name="Q4_1", bits=4, has_minima=True),
        QuantFormat(name="Q5_0", bits=5, offset=16),
        QuantFormat(name="Q8_0", bits=8, offset=128),
        QuantFormat(name="Q2_K", bits=4, group=16, scales="super", has_minima=True),
        QuantFormat(name="Q3_K", bits=4, offset=4, group=16, scales="super"),
        QuantFormat(name="Q4_K", bits=4, scales="super", has_minima=True),
        QuantFormat(name="Q5_K", bits=5, scales="super", has_minima=True),
        QuantFormat(name="Q6_K", bits=6, offset=32, group=16, scales="super"),
        QuantFormat(name="IQ4_NL", bits=4, table=TABLES[0]),
        QuantFormat(name="MXFP4", bits=4, table=TABLES[1], scales="f32"),
        QuantFormat(name="AWQ", bits=4, scales="f32", has_minima=True),
    )
}
ROWS, F = 40, 512


class Given(QuantisedMatrix):
    """A matrix in memory."""

    def __init__(self, form: QuantFormat, rows: QuantRows) -> None:
        self._format, self._rows = form, rows

    @property
    def format(self) -> QuantFormat:
        return self._format

    @property
    def shape(self) -> tuple[int, int]:
        num_rows, width = self._rows.codes_OF.shape
        return num_rows, width

    def rows(self, start: int, stop: int) -> QuantRows:
        taken = {name: None if array is None else array[start:stop] for name, array in vars(self._rows).items()}
        return replace(self._rows, **taken)


@cache
def drawn(name: str, rows: int = ROWS, seed: int = 0) -> Given:
    form, random = FORMATS[name], np.random.default_rng(seed)
    groups, supers = F // form.group, F // 256
    parts: dict[str, Any] = {"codes_OF": random.integers(0, 2**form.bits, (rows, F), dtype=np.uint8)}
    if form.scales == "super":
        parts["scales_OG"] = random.integers(-32, 64, (rows, groups)).astype(np.int8)
        parts["supers_OS"] = random.normal(0, 0.01, (rows, supers)).astype(np.float16)
        if form.has_minima:
            parts["minima_OG"] = random.integers(0, 64, (rows, groups)).astype(np.uint8)
            parts["super_minima_OS"] = random.normal(0, 0.01, (rows, supers)).astype(np.float16)
    else:
        dtype = np.float16 if form.scales == "f16" else np.float32
        parts["scales_OG"] = random.normal(0, 0.1, (rows, groups)).astype(dtype)
        if form.has_minima:
            parts["minima_OG"] = random.normal(0, 0.5, (rows, groups)).astype(dtype)
    return Given(form, QuantRows(**parts))


def activations(rows: int) -> NDArray[np.float32]:
    x_RF = np.random.default_rng(rows).standard_normal((rows, F)).astype(np.float32)
    x_RF[0, 32:64] = 0.0  # a block without a scale
    x_RF[-1, 64:96] *= 1e-35  # below the least scale
    return x_RF
