"""GPTQ's layout: words of codes along the input, for each output feature.

    qweight   I32 [F * bits / 32, O]   codes of consecutive input features, low bits first
    qzeros    I32 [G, O * bits / 32]   zero points of consecutive output features, low bits first; the first format
                                       stores them less one
    scales    F16 [G, O]
    g_idx     I32 [F]                  the group of each feature: f // group, unless act-order mixes them

Source: AutoGPTQ's `qlinear` modules. Many files also hold a bias of zeros for every module.

Example: with 4 bits and groups of 128, a matrix [4096, 4096] has qweight [512, 4096] and scales [32, 4096].
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from outrider.errors import CheckpointError
from outrider.formats.quantised.layout import SCALES, Layout, Opened, Sizes, check_scheme, find, read_scales, sizes_of
from outrider.formats.quantised.packing import word_codes
from outrider.formats.quantised.parts import part
from outrider.formats.weights import StoredTensor, Weights
from outrider.models.quant_scheme import QuantScheme

__all__ = ["open_gptq"]


@final
@dataclass(frozen=True, kw_only=True)
class GptqLayout(Layout):
    """One matrix of a GPTQ checkpoint; `zero_shift` is added to stored zero points."""

    weights: Weights
    module: str
    sizes: Sizes
    zero_shift: int

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        return word_codes(part(self._stored("qweight"), columns=slice(start, stop)).T, self.sizes.bits)

    def scales(self, start: int, stop: int) -> NDArray[np.generic]:
        return np.ascontiguousarray(read_scales(self._stored("scales"), slice(None), slice(start, stop)).T)

    def zero_points(self, start: int, stop: int) -> NDArray[np.int16]:
        per_word, stored = 32 // self.sizes.bits, self._stored("qzeros")
        first = start // per_word
        words_GW = part(stored, columns=slice(first, -(-stop // per_word)))
        zeros_GR = word_codes(words_GW, self.sizes.bits)[:, start - first * per_word : stop - first * per_word]
        shifted: NDArray[np.int16] = zeros_GR.T.astype(np.int16) + np.int16(self.zero_shift)
        if shifted.max(initial=0) >= 2**self.sizes.bits:
            raise CheckpointError(
                f"tensor {stored.name} in {stored.file} holds a zero point of {int(shifted.max())}, above"
                f" {2**self.sizes.bits - 1}, which engines read in different ways; use a gptq_v2 checkpoint"
            )
        return shifted

    def _stored(self, suffix: str) -> StoredTensor:
        return self.weights.stored[f"{self.module}.{suffix}"]


def open_gptq(weights: Weights, module: str, shape: tuple[int, int], scheme: QuantScheme) -> Opened | None:
    """Return a module's layout, checked by its header, or None if it is not quantised.

    Raises:
        CheckpointError: for missing or misshapen tensors, and for act-order.
    """
    if f"{module}.qweight" not in weights:
        return None
    codes = find(weights, f"{module}.qweight", ("I32",))
    scales = find(weights, f"{module}.scales", SCALES)
    find(weights, f"{module}.qzeros", ("I32",))
    sizes = sizes_of(codes, shape, codes.shape[0], scales, scales.shape[0])
    check_scheme(codes, sizes, scheme)
    per_word = 32 // sizes.bits
    if sizes.num_rows % per_word:
        raise CheckpointError(
            f"{module} in {codes.file} has {sizes.num_rows} output features, no multiple of {per_word}; the file is"
            " damaged: download it again"
        )
    tensors: dict[str, tuple[int, ...]] = {
        f"{module}.qweight": (sizes.num_features // per_word, sizes.num_rows),
        f"{module}.qzeros": (sizes.num_groups, sizes.num_rows // per_word),
        f"{module}.scales": (sizes.num_groups, sizes.num_rows),
    }
    if scheme.act_order or f"{module}.g_idx" in weights:
        tensors[f"{module}.g_idx"] = (sizes.num_features,)
        check_order(weights, f"{module}.g_idx", sizes)
    layout = GptqLayout(weights=weights, module=module, sizes=sizes, zero_shift=scheme.zero_shift)
    return Opened(layout=layout, sizes=sizes, tensors=tensors)


def check_order(weights: Weights, name: str, sizes: Sizes) -> None:
    """Refuse a map of features to groups unless consecutive features form the groups."""
    stored = find(weights, name, ("I32", "I64"), num_axes=1)
    if stored.shape != (sizes.num_features,):
        return  # refused with all other shapes
    groups_F = part(stored).numpy()
    if (groups_F == -1).all():  # a map that was never set
        return
    if not (groups_F == np.arange(sizes.num_features) // sizes.group).all():
        raise CheckpointError(
            f"tensor {name} in {stored.file} mixes the groups (act-order), which is not read; use a checkpoint without"
            " act-order (desc_act false), or the original with weights int8 or int4"
        )
