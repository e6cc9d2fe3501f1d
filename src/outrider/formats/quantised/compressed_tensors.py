"""Layouts of compressed-tensors (llm-compressor, vLLM): pack-quantized and int-quantized.

    weight_packed       I32 [O, F * bits / 32]   codes q + 2 ** (bits - 1), low bits first along the input
    weight              I8 [O, F]                int-quantized: q itself
    weight_scale        [O, G]                   one group is the whole row with the strategy "channel"
    weight_zero_point   I32 [O * bits / 32, G]   asymmetric: zero points, packed along the output as the codes are; or
                        I8 [O, G]                as they are
    weight_shape        I64 [2]                  (O, F)

The value is `(q - zero_point) * scale`; both are shifted here, so that codes begin at 0. Source: `pack_quantized` of
github.com/vllm-project/compressed-tensors.

Example: symmetric codes of 4 bits have the zero point 8 after the shift.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from outrider.errors import CheckpointError
from outrider.formats.quantised.gptq import check_order
from outrider.formats.quantised.layout import SCALES, Layout, Opened, Sizes, check_scheme, find, read_scales, sizes_of
from outrider.formats.quantised.packing import word_codes
from outrider.formats.quantised.parts import part
from outrider.formats.weights import StoredTensor, Weights
from outrider.models.quant_scheme import QuantScheme

__all__ = ["open_compressed"]


@final
@dataclass(frozen=True, kw_only=True)
class CompressedLayout(Layout):
    """One matrix of a compressed-tensors checkpoint; codes are `stored` I32 (packed) or I8, and so are zero points."""

    sizes: Sizes
    stored: StoredTensor
    stored_scales: StoredTensor
    stored_zeros: StoredTensor | None

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        read = part(self.stored, slice(start, stop))
        if self.stored.dtype == "I32":
            return word_codes(read, self.sizes.bits)
        return (read.numpy().view(np.uint8) + np.uint8(128)).astype(np.uint8)

    def scales(self, start: int, stop: int) -> NDArray[np.generic]:
        return read_scales(self.stored_scales, slice(start, stop))

    def zero_points(self, start: int, stop: int) -> NDArray[np.int16]:
        half, stored = 2 ** (self.sizes.bits - 1), self.stored_zeros
        if stored is None:
            return np.broadcast_to(np.int16(half), (stop - start, self.sizes.num_groups))
        if stored.dtype == "I32":
            per_word = 32 // self.sizes.bits
            first = start // per_word
            words_WG = part(stored, slice(first, -(-stop // per_word)))
            zeros_GR = word_codes(words_WG.T, self.sizes.bits)[:, start - first * per_word : stop - first * per_word]
            return zeros_GR.T.astype(np.int16)
        zeros_RG: NDArray[np.int16] = part(stored, slice(start, stop)).numpy().astype(np.int16) + np.int16(half)
        if zeros_RG.size and not 0 <= zeros_RG.min() <= zeros_RG.max() < 2 * half:
            raise CheckpointError(
                f"tensor {stored.name} in {stored.file} holds zero points outside {-half} to {half - 1}; the file is"
                " damaged: download it again"
            )
        return zeros_RG


def open_compressed(weights: Weights, module: str, shape: tuple[int, int], scheme: QuantScheme) -> Opened | None:
    """Return a module's layout, checked by its header, or None if it is not quantised.

    Raises:
        CheckpointError: for missing or misshapen tensors, and for act-order.
    """
    packed, plain = f"{module}.weight_packed", f"{module}.weight"
    if packed in weights:
        codes = find(weights, packed, ("I32",))
        num_words = codes.shape[1]
    elif plain in weights and weights.stored[plain].dtype == "I8":
        codes = find(weights, plain, ("I8",))
        num_words = shape[1] // 4
    else:
        return None
    scales = find(weights, f"{module}.weight_scale", SCALES)
    sizes = sizes_of(codes, shape, num_words, scales, scales.shape[1])
    check_scheme(codes, sizes, scheme)
    width = sizes.num_features if codes.dtype == "I8" else num_words
    tensors: dict[str, tuple[int, ...]] = {
        codes.name: (sizes.num_rows, width),
        scales.name: (sizes.num_rows, sizes.num_groups),
    }
    zeros = _zeros(weights, module, sizes, tensors, scheme)
    if packed in weights:
        tensors[f"{module}.weight_shape"] = (2,)
        _check_stored_shape(find(weights, f"{module}.weight_shape", ("I64", "I32"), num_axes=1), shape)
    if f"{module}.weight_g_idx" in weights:
        tensors[f"{module}.weight_g_idx"] = (sizes.num_features,)
        check_order(weights, f"{module}.weight_g_idx", sizes)
    layout = CompressedLayout(sizes=sizes, stored=codes, stored_scales=scales, stored_zeros=zeros)
    return Opened(layout=layout, sizes=sizes, tensors=tensors)


def _zeros(
    weights: Weights, module: str, sizes: Sizes, tensors: dict[str, tuple[int, ...]], scheme: QuantScheme
) -> StoredTensor | None:
    """Return the zero points' entry, and add it to the `tensors` to be checked."""
    name = f"{module}.weight_zero_point"
    if scheme.is_symmetric and name not in weights:
        return None
    zeros = find(weights, name, ("I32", "I8"))
    is_packed = zeros.dtype == "I32"
    tensors[name] = (-(-sizes.num_rows * sizes.bits // 32) if is_packed else sizes.num_rows, sizes.num_groups)
    return zeros


def _check_stored_shape(stored: StoredTensor, shape: tuple[int, int]) -> None:
    found = part(stored).tolist()
    if found != list(shape):
        raise CheckpointError(
            f"tensor {stored.name} in {stored.file} is {found}, but this model has {list(shape)} there; check that"
            " config.json belongs to these weights"
        )
