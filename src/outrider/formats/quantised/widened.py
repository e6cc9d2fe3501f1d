"""Quantised weights as tensors: each matrix is dequantised when it is looked up, by ranges of rows.

Example: `Widened(quantised_weights(directory, "stored"), torch.bfloat16)` gives what a target in bf16 loads.
"""

from collections.abc import Iterator, Mapping
from typing import Final, final

import torch
from torch import Tensor

from outrider.formats.weights import cast
from outrider.ops.quantised import QuantisedMatrix, dequantised

__all__ = ["Widened"]

MOST_WEIGHTS: Final = 2**24
"""Weights dequantised at once: 64 MB in fp32."""


@final
class Widened(Mapping[str, Tensor]):
    """Weights in one dtype; a lookup needs memory for that tensor and one range of rows."""

    def __init__(self, weights: Mapping[str, Tensor | QuantisedMatrix], dtype: torch.dtype) -> None:
        self._weights = weights
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        found = self._weights[name]
        if isinstance(found, Tensor):
            return cast(found, self._dtype, f"tensor {name}")
        num_rows, num_features = found.shape
        wide = torch.empty(found.shape, dtype=self._dtype)
        step = max(1, MOST_WEIGHTS // num_features)
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            values = torch.from_numpy(dequantised(found.format, found.rows(start, stop)))
            wide[start:stop] = cast(values, self._dtype, f"tensor {name}")
        return wide

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
