"""Weights on disk: safetensors files, opened lazily and distrusted precisely.

A checkpoint is a directory with one `model.safetensors`, or with shards and `model.safetensors.index.json`. Such a
file is `u64 header length | JSON header | bytes`, and the header says where every tensor ends; so a download that
stopped early is found on opening, from the file's size, before a single weight is read. Pickled weights are never
opened: unpickling runs code.

Example:

    weights = read_weights(directory)
    weights.check(spec.weight_shapes())                         # names and shapes, without reading any tensor
    q_proj = weights["model.layers.0.self_attn.q_proj.weight"]  # read now
"""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from outrider.errors import CheckpointError

__all__ = ["StoredTensor", "Weights", "read_weights"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"})
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """What a file's header says about one tensor. `dtype` is the safetensors name, such as BF16."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]


@final
class Weights(Mapping[str, Tensor]):
    """A checkpoint's tensors by name. Looking one up reads it, in its stored dtype, to CPU memory.

    The tensor is the caller's own: nothing is kept, so that loading a model needs its weights and one tensor more.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        """Raises `CheckpointError` for a name that is not there and for a dtype that is not read."""
        tensor = self._find(name)
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name} in {tensor.file} is stored as {tensor.dtype}, which is not read;"
                " use a bf16, fp16 or fp32 checkpoint"
            )
        with _opened(tensor.file) as file:  # pages of the map count as resident until it is closed
            loaded: Tensor = file.get_tensor(name).clone()
        return loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return self._find(name).shape

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read a tensor that must have this shape."""
        self._check_shape(name, shape)
        return self[name]

    def check(self, shapes: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
        """Raise `CheckpointError` unless exactly these names are here, with these shapes.

        Tensors named in `optional`, and the rotary frequencies that old exporters stored, may be present or absent.
        """
        for name, shape in shapes.items():
            if name in self.stored or name not in optional:
                self._check_shape(name, shape)
        known = set(shapes) | set(optional)
        extra = [name for name in self.stored if name not in known and not name.endswith("rotary_emb.inv_freq")]
        if extra:
            raise CheckpointError(
                f"{self.stored[extra[0]].file} holds tensor {extra[0]}, which this model does not have"
                f" ({len(extra)} such in all); check that config.json belongs to these weights"
            )

    def _find(self, name: str) -> StoredTensor:
        if name not in self.stored:
            raise CheckpointError(f"the checkpoint has no tensor {name}{_nearest_name(name, self.stored)}")
        return self.stored[name]

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found = self._find(name)
        if found.shape != tuple(shape):
            raise CheckpointError(
                f"tensor {name} in {found.file} has shape {found.shape}, expected {tuple(shape)};"
                " check that config.json belongs to these weights"
            )


def read_weights(directory: str | Path) -> Weights:
    """Open a checkpoint directory (or one safetensors file); reads headers only.

    Raises `CheckpointError` for a missing or truncated file, an index that its shards do not match, and a directory
    without safetensors.
    """
    path = Path(directory)
    if path.is_file():
        return Weights(_read_header(path))
    if not path.is_dir():
        raise CheckpointError(f"checkpoint directory {path} does not exist")
    if (path / SINGLE).is_file():
        return Weights(_read_header(path / SINGLE))
    if (path / INDEX).is_file():
        return Weights(_read_shards(path))
    return Weights(_read_header(_only_file(path)))


def _read_shards(directory: Path) -> dict[str, StoredTensor]:
    shard_of = _weight_map(directory / INDEX)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{directory / INDEX} names shard {shard!r}, which leaves the directory")
        found |= _read_header(directory / shard)
    for name, shard in shard_of.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(f"{directory / INDEX} places tensor {name} in {shard}, which does not hold it")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index ({error!r}); download it again") from error
    return weight_map


def _only_file(directory: Path) -> Path:
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{directory} holds {len(files)} safetensors files but no {INDEX}; download the index too"
        )
    pickled = sorted(file.name for file in directory.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"{directory} holds only pickled weights ({pickled[0]}), which are never opened because unpickling runs"
            " code; convert them to safetensors in a sandbox you trust, or use a safetensors revision"
        )
    raise CheckpointError(f"{directory} holds no {SINGLE} and no {INDEX}; pickled weights are never used")


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a valid safetensors file ({error}); download it again") from error


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 8 + length <= size else None
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; download the missing shard") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not a safetensors file ({error}); download it again") from error
    if header is None:
        raise CheckpointError(f"{file} is {size} bytes, too short for its own header; download it again")
    return _stored_tensors(file, header, 8 + length, size)


def _stored_tensors(file: Path, header: Any, data_start: int, size: int) -> dict[str, StoredTensor]:
    try:
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        expected = data_start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        stored = {
            name: StoredTensor(name=name, file=file, dtype=entry["dtype"], shape=tuple(entry["shape"]))
            for name, entry in entries.items()
        }
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{file} has a broken safetensors header ({error!r}); download it again") from error
    if expected != size:
        raise CheckpointError(
            f"{file} is {size} bytes, expected {expected}: it is truncated or damaged; download it again"
        )
    return stored


def _nearest_name(name: str, stored: Mapping[str, StoredTensor]) -> str:
    close = difflib.get_close_matches(name, stored, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f" among its {len(stored)}"
