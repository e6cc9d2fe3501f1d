"""Parts of safetensors tensors, and a mapping of weights that are read when they are looked up.

A part is a range of rows and columns. Only its bytes are read, and the file is closed again, because mapped pages count
as resident memory until then.

Example: `part(weights.stored["lm_head.weight"], slice(0, 256))` reads the first 256 rows of the output head.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from outrider.errors import CheckpointError, as_error
from outrider.formats.tensors.stored import EVERY, StoredTensor, read_slice
from outrider.formats.weights import Weights, check_finite
from outrider.kernels.deferral import signals_deferred
from outrider.ops.quantised import QuantisedMatrix

__all__ = ["FLOATS", "LazyWeights", "floats", "part", "require_dtype"]

FLOATS: Final = ("BF16", "F16", "F32", "F64")


def part(stored: StoredTensor, rows: slice = EVERY, columns: slice = EVERY, dtype: torch.dtype | None = None) -> Tensor:
    """Read some rows and columns of a tensor with one or two axes, in its stored dtype or in `dtype`.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    with (
        as_error(CheckpointError, f"tensor {stored.name} in {stored.file} cannot be read", "download it again"),
        signals_deferred(),  # safetensors turns an interruption into an error of its own
        safe_open(stored.file, framework="pt", device="cpu") as file,
    ):
        read = read_slice(file, stored, rows, columns)
        return read.to(dtype, copy=True)  # mapped memory is gone when the file is closed


def floats(stored: StoredTensor, rows: slice = EVERY, columns: slice = EVERY) -> NDArray[np.float32]:
    """Read some rows and columns of floating-point numbers as fp32.

    Raises:
        CheckpointError: if one is not finite.
    """
    read = part(stored, rows, columns, torch.float32)
    check_finite(read, f"tensor {stored.name} in {stored.file}")
    numbers: NDArray[np.float32] = read.numpy()
    return numbers


def require_dtype(stored: StoredTensor, dtypes: Collection[str]) -> None:
    """Refuse a tensor stored in another dtype than these, which are safetensors names."""
    if stored.dtype not in dtypes:
        raise CheckpointError(
            f"tensor {stored.name} in {stored.file} is stored as {stored.dtype}, not as {' or '.join(dtypes)}; check"
            " that config.json belongs to these weights"
        )


@final
class LazyWeights(Mapping[str, Tensor | QuantisedMatrix]):
    """A decoder's weights by Hugging Face name; each is made or read when it is looked up, and not kept.

    Args:
        names: all names, in the order of the layers.
        matrices: functions that make the quantised matrices, by name.
        tensors: the checkpoint that holds the other names.
    """

    def __init__(
        self, names: Collection[str], matrices: Mapping[str, Callable[[], QuantisedMatrix]], tensors: Weights
    ) -> None:
        self._names = dict.fromkeys(names)
        self._matrices = matrices
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor | QuantisedMatrix:
        if name not in self._names:
            raise KeyError(name)
        return self._matrices[name]() if name in self._matrices else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
