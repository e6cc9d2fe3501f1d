"""AWQ's layout, version GEMM: words of codes along the output, for each input feature.

    qweight   I32 [F, O / 8]    codes of eight output features, interleaved
    qzeros    I32 [G, O / 8]    zero points, packed in the same way
    scales    F16 [G, O]

The four bits number i of a word, from the low end, belong to its column (0, 2, 4, 6, 1, 3, 5, 7)[i]. Source: AutoAWQ's
`packing_utils.py`.

Example: the word 0x10 holds code 1 for its third column.
"""

from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from outrider.errors import CheckpointError
from outrider.formats.quantised.layout import SCALES, Layout, Opened, check_scheme, find, read_scales, sizes_of
from outrider.formats.quantised.packing import word_codes
from outrider.formats.quantised.parts import part
from outrider.formats.weights import Weights
from outrider.models.quant_scheme import QuantScheme

__all__ = ["open_awq"]

PLACES: Final = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
"""Place in a word, in units of four bits, for each of its columns."""
COLUMNS: Final = 8


@final
@dataclass(frozen=True, kw_only=True)
class AwqLayout(Layout):
    """One matrix of an AWQ checkpoint."""

    weights: Weights
    module: str

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._columns("qweight", start, stop)

    def scales(self, start: int, stop: int) -> NDArray[np.generic]:
        stored = self.weights.stored[f"{self.module}.scales"]
        return np.ascontiguousarray(read_scales(stored, slice(None), slice(start, stop)).T)

    def zero_points(self, start: int, stop: int) -> NDArray[np.int16]:
        return self._columns("qzeros", start, stop).astype(np.int16)

    def _columns(self, suffix: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Read the codes of some output features, transposed: [R, F] or [R, G]."""
        first = start // COLUMNS
        words_FW = part(self.weights.stored[f"{self.module}.{suffix}"], columns=slice(first, -(-stop // COLUMNS)))
        codes_FW8 = word_codes(words_FW, 4).reshape(*words_FW.shape, COLUMNS)[:, :, PLACES]
        wide_FC = codes_FW8.reshape(len(codes_FW8), -1)
        return np.ascontiguousarray(wide_FC[:, start - first * COLUMNS : stop - first * COLUMNS].T)


def open_awq(weights: Weights, module: str, shape: tuple[int, int], scheme: QuantScheme) -> Opened | None:
    """Return a module's layout, checked by its header, or None if it is not quantised.

    Raises:
        CheckpointError: for missing or misshapen tensors.
    """
    if f"{module}.qweight" not in weights:
        return None
    codes = find(weights, f"{module}.qweight", ("I32",))
    scales = find(weights, f"{module}.scales", SCALES)
    find(weights, f"{module}.qzeros", ("I32",))
    sizes = sizes_of(codes, shape, shape[1] // COLUMNS, scales, scales.shape[0])
    check_scheme(codes, sizes, scheme)
    if sizes.num_rows % COLUMNS:
        raise CheckpointError(
            f"{module} in {codes.file} has {sizes.num_rows} output features, no multiple of {COLUMNS}; the file is"
            " damaged: download it again"
        )
    tensors = {
        f"{module}.qweight": (sizes.num_features, sizes.num_rows // COLUMNS),
        f"{module}.qzeros": (sizes.num_groups, sizes.num_rows // COLUMNS),
        f"{module}.scales": (sizes.num_groups, sizes.num_rows),
    }
    return Opened(layout=AwqLayout(weights=weights, module=module), sizes=sizes, tensors=tensors)
