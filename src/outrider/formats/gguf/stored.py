"""A GGUF model as its file stores it: matrices keep their codes and scales, and nothing is written to disk.

    model = open_stored(Path("model-Q4_K_M.gguf"))         # reads headers and the tokenizer, checks names and shapes
    matrix = model.weights["model.layers.0.mlp.up_proj.weight"]
    rows = matrix.rows(0, 64)                              # reads and decodes 64 rows

Weights have Hugging Face names and that layout's order of rows, see `layout.py`. A matrix of a type in `BLOCK_TYPES` is
a `QuantisedMatrix`; F32, F16 and BF16 matrices, and all vectors, are tensors in their stored dtype. Types may differ
from tensor to tensor, as in files of kind Q4_K_M.

Types outside both lists are refused on opening. Scales that are not finite are found when their rows are read.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from outrider.errors import CheckpointError, as_error, nearest
from outrider.formats.gguf.blocks import BLOCK_TYPES, decode
from outrider.formats.gguf.config import config_of_gguf
from outrider.formats.gguf.file import GgufFile, open_gguf
from outrider.formats.gguf.gemma3 import norm_offset
from outrider.formats.gguf.layout import (
    check_tensors,
    generation_config,
    halves_first,
    hugging_face_names,
    rotated_heads,
)
from outrider.formats.gguf.tensors import GgufTensor
from outrider.formats.gguf.tokenizer import write_tokenizer
from outrider.formats.tokenizer import load_tokenizer
from outrider.formats.weights import check_finite
from outrider.models.spec import DecoderSpec
from outrider.ops.quantised import QuantFormat, QuantisedMatrix, QuantRows, dequantised

__all__ = ["StoredModel", "StoredWeights", "open_stored", "stored_tokenizer", "stored_weights"]

DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_SCALE: Final = np.finfo(np.float32).max / np.float32(12)
"""The largest scale of MXFP4 whose products, up to 12 times it, are finite in fp32; fp16 scales are far below."""


@final
class StoredMatrix(QuantisedMatrix):
    """A quantised matrix of a file.

    `order_O` lists the file's row for each row of the matrix, None where both orders agree.
    """

    def __init__(self, tensor: GgufTensor, order_O: NDArray[np.int64] | None = None) -> None:
        self.tensor = tensor
        self.order_O = order_O

    @property
    def format(self) -> QuantFormat:
        return BLOCK_TYPES[self.tensor.kind].format

    @property
    def shape(self) -> tuple[int, int]:
        return self.tensor.num_rows, self.tensor.shape[-1]

    def rows(self, start: int, stop: int) -> QuantRows:
        rows = decode(self.tensor.kind, self._read(start, stop))
        _check_scales(self.tensor, rows, start)
        return rows

    def _read(self, start: int, stop: int) -> NDArray[np.uint8]:
        if self.order_O is None or start == stop:
            return self.tensor.read(start, stop)
        # rows move within their head only: the span is at most one head longer at each end
        wanted_O = self.order_O[start:stop]
        first = int(wanted_O.min())
        return self.tensor.read(first, int(wanted_O.max()) + 1)[wanted_O - first]


@final
class StoredWeights(Mapping[str, Tensor | QuantisedMatrix]):
    """A file's weights by Hugging Face name. A lookup reads a whole tensor, or only describes a quantised matrix."""

    def __init__(self, source: GgufFile, names: Mapping[str, str], config: Mapping[str, Any]) -> None:
        self._tensors = {name: source.tensors[given] for name, given in names.items()}
        self._heads = {name: rotated_heads(source, given, config) for name, given in names.items()}
        self._offsets = {name: norm_offset(source, given) for name, given in names.items()}

    def __getitem__(self, name: str) -> Tensor | QuantisedMatrix:
        """Return a quantised matrix unread, any other tensor in its stored dtype.

        Raises:
            CheckpointError: for an unknown name, NaN and infinite values, and a file that cannot be read.
        """
        tensor, heads = self.stored(name), self._heads[name]
        if tensor.kind in BLOCK_TYPES and len(tensor.shape) == 2:
            order = None if heads is None else halves_first(torch.arange(tensor.num_rows), heads).numpy()
            return StoredMatrix(tensor, order)
        if tensor.kind in BLOCK_TYPES:
            values = torch.from_numpy(dequantised(BLOCK_TYPES[tensor.kind].format, StoredMatrix(tensor).rows(0, 1)))
        else:
            values = torch.from_numpy(tensor.read().reshape(-1)).view(DTYPES[tensor.kind])
        values = values.reshape(tensor.shape)
        check_finite(values, f"tensor {tensor.name} in {tensor.file}")
        if offset := self._offsets[name]:
            values = values.float() - offset
        return values if heads is None else halves_first(values, heads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def stored(self, name: str) -> GgufTensor:
        """Return a tensor's type, shape and place, without reading it."""
        if name not in self._tensors:
            raise CheckpointError(f"the file has no tensor {name}{nearest(name, self._tensors)}")
        return self._tensors[name]

    @property
    def num_bytes(self) -> int:
        """Size of all weights in the file, in bytes."""
        return sum(tensor.num_bytes for tensor in self._tensors.values())


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """An opened model.

    file         its first part
    spec         its decoder, with all ids that end a text
    config       the content of its `config.json`, had it one
    weights      its weights, read at lookup
    tokenizer    a `transformers` tokenizer
    """

    file: Path
    spec: DecoderSpec
    config: Mapping[str, Any]
    weights: StoredWeights
    tokenizer: Any


def open_stored(file: Path) -> StoredModel:
    """Open a GGUF file, or all parts of a model if `file` is one of them.

    Raises:
        CheckpointError: for a damaged file, a type that does not run as stored, and a model that cannot be reproduced.
    """
    source = open_gguf(file)
    config, spec, weights = _checked(source)
    return StoredModel(file=source.path, spec=spec, config=config, weights=weights, tokenizer=stored_tokenizer(source))


def stored_weights(file: Path) -> StoredWeights:
    """Open a file as `open_stored` does, for its weights alone: its tokenizer takes a second.

    Raises:
        CheckpointError: as `open_stored`, but for what its tokenizer lacks.
    """
    return _checked(open_gguf(file))[2]


def _checked(source: GgufFile) -> tuple[Mapping[str, Any], DecoderSpec, StoredWeights]:
    """Return the config, the decoder and the weights of a model that runs as stored."""
    config = config_of_gguf(source)
    names = hugging_face_names(source)
    ends = generation_config(source, config).get("eos_token_id", ())
    spec = DecoderSpec.from_values(config, source.path, ends)
    check_tensors(source, names, spec)
    if spec.mlp_bias:
        raise CheckpointError(
            f"{source.path} has biases in its MLP, which the native decoder does not support; use --weights bf16"
        )
    for name in names.values():
        _check_type(source.tensors[name])
    return config, spec, StoredWeights(source, names, config)


def _check_type(tensor: GgufTensor) -> None:
    if tensor.kind in DTYPES or tensor.kind in BLOCK_TYPES:
        return
    remedy = "use the original checkpoint"
    if _is_widened(tensor.kind):
        remedy = "requantise to Q4_K_M or Q8_0 with llama-quantize, or use --weights bf16"
    raise CheckpointError(
        f"{tensor.file} stores {tensor.name} as {tensor.kind}, which does not run as stored; {remedy}"
    )


def _is_widened(kind: str) -> bool:
    """Return whether `convert_gguf` reads this type: gguf-py knows how to dequantise a block of it."""
    number = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[number][1]), np.uint8), number)
    except NotImplementedError:
        return False
    return True


def _check_scales(tensor: GgufTensor, rows: QuantRows, start: int) -> None:
    """Refuse scales and minima that are not finite, or whose products are not."""
    for numbers in (rows.supers_OS, rows.super_minima_OS, rows.scales_OG, rows.minima_OG):
        if numbers is None or not np.issubdtype(numbers.dtype, np.floating):
            continue
        is_good = np.abs(numbers.astype(np.float32)) <= MAX_SCALE  # false for NaN
        if not is_good.all():
            row, place = (int(index) for index in np.argwhere(~is_good)[0])
            raise CheckpointError(
                f"tensor {tensor.name} in {tensor.file} has a scale of {float(numbers[row, place])} in row"
                f" {start + row}; the file is damaged: download it again"
            )


def stored_tokenizer(source: GgufFile) -> Any:
    """Build the tokenizer as a converted directory would give it, through one that is deleted again.

    Raises:
        CheckpointError: if it is damaged or of a kind that is not converted.
    """
    with (
        as_error(CheckpointError, "the temporary directory cannot be written", "free space or set TMPDIR"),
        tempfile.TemporaryDirectory(prefix="outrider-") as scratch,
    ):
        write_tokenizer(source.metadata, source.architecture, Path(scratch))
        tokenizer = load_tokenizer(Path(scratch))
    tokenizer.name_or_path = str(source.path)
    return tokenizer
