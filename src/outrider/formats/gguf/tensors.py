"""Tensors of a GGUF file: type, shape and place, checked on opening; bytes, read by ranges of rows.

A row is the innermost dimension, and a whole number of blocks: `row_bytes = F / block * bytes of a block`. Bytes are
read from the file, not mapped: mapped pages would count as memory of this process, and a file that shrinks while it is
mapped would end it.

Example: a Q4_1 matrix [192, 576] has rows of 18 blocks of 20 bytes, 360 bytes each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES
from numpy.typing import NDArray

from outrider.errors import CheckpointError, as_error
from outrider.formats.gguf.header import Header, TensorEntry, damaged
from outrider.formats.tensors.stored import MOST_EXPERTS

__all__ = ["EXPERTS", "GgufTensor", "placed_tensors", "split_experts"]

EXPERTS: Final = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
"""Tensors that hold a matrix for each expert of a layer."""

TYPES: Final = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()} | {39: ("MXFP4", 32, 17)}
"""Name, features of a block and bytes of a block by the number of a type; older releases of `gguf` lack MXFP4."""


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor of an opened file.

    kind         name of its type: "F32", "Q4_K"
    shape        sizes from the outermost dimension
    offset       its first byte in the file
    row_bytes    bytes of one row
    """

    name: str
    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def num_rows(self) -> int:
        """Number of rows, the product of all dimensions but the innermost."""
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        """Size in the file, in bytes."""
        return self.num_rows * self.row_bytes

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Read the bytes of rows `start` to before `stop` as [rows, row_bytes].

        Raises:
            CheckpointError: if the file cannot be read or is shorter than it was.
        """
        last = self.num_rows if stop is None else stop
        assert 0 <= start <= last <= self.num_rows, (start, stop, self.num_rows)
        size = (last - start) * self.row_bytes
        with as_error(CheckpointError, f"tensor {self.name} in {self.file} cannot be read", "check its permissions"):
            data = np.fromfile(self.file, np.uint8, count=size, offset=self.offset + start * self.row_bytes)
        if len(data) != size:
            raise CheckpointError(f"{self.file} ended inside tensor {self.name}; it was changed: download it again")
        return data.reshape(last - start, self.row_bytes)


def placed_tensors(path: Path, header: Header) -> dict[str, GgufTensor]:
    """Return the tensors of a file by name.

    Raises:
        CheckpointError: for an unknown type, rows that are no whole number of blocks, two tensors with one name, and
            places outside the file, unaligned or shared.
    """
    tensors: dict[str, GgufTensor] = {}
    for entry in header.tensors:
        if entry.name in tensors:
            raise damaged(path, f"it holds {entry.name} twice")
        tensors[entry.name] = _placed(path, header, entry)
    _check_spans(path, tensors)
    return tensors


def split_experts(tensors: Mapping[str, GgufTensor]) -> dict[str, GgufTensor]:
    """Return the tensors with a matrix of its own for each expert: `blk.0.ffn_up_exps.7.weight`."""
    found: dict[str, GgufTensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem.split(".")[-1] not in EXPERTS or len(tensor.shape) != 3 or tensor.shape[0] > MOST_EXPERTS:
            found[name] = tensor
            continue
        size = tensor.num_bytes // tensor.shape[0]
        for number in range(tensor.shape[0]):
            own, offset = f"{stem}.{number}.{kind}", tensor.offset + number * size
            found[own] = replace(tensor, name=own, shape=tensor.shape[1:], offset=offset)
    return found


def _placed(path: Path, header: Header, entry: TensorEntry) -> GgufTensor:
    if entry.kind not in TYPES:
        raise CheckpointError(
            f"{path} stores {entry.name} as type {entry.kind}, which is not known; use the original checkpoint"
        )
    kind, block_features, block_bytes = TYPES[entry.kind]
    features = entry.shape[-1] if entry.shape else 1
    if features % block_features:
        raise CheckpointError(
            f"{path} stores {entry.name} as {kind} in rows of {features}, no multiple of its blocks of"
            f" {block_features}; download it again, or convert it anew"
        )
    tensor = GgufTensor(
        name=entry.name,
        file=path,
        kind=kind,
        shape=entry.shape,
        offset=header.data_start + entry.offset,
        row_bytes=features // block_features * block_bytes,
    )
    if entry.offset % header.alignment:
        raise damaged(path, f"{entry.name} begins at byte {tensor.offset}, which is not aligned")
    if tensor.offset + tensor.num_bytes > header.num_bytes:
        end = tensor.offset + tensor.num_bytes
        raise damaged(path, f"{entry.name} would end at byte {end} of {header.num_bytes}")
    return tensor


def _check_spans(path: Path, tensors: dict[str, GgufTensor]) -> None:
    spans = sorted((tensor.offset, tensor.num_bytes, tensor.name) for tensor in tensors.values())
    for (start, size, name), (following, _, other) in pairwise(spans):
        if start + size > following:
            raise CheckpointError(f"{path} stores {name} and {other} in the same place; download it again")
