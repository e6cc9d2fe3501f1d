"""Weights on disk: safetensors files, opened lazily and checked on opening.

A checkpoint is a directory with one `model.safetensors`, or with shards and `model.safetensors.index.json`. Such a
file is `u64 header length | JSON header | bytes`, and the header holds the end of every tensor. So an incomplete
download is found on opening, from the file's size, before any weight is read. Pickled weights are never opened:
unpickling runs code.

Example:

    weights = read_weights(directory)
    weights.check(spec.weight_shapes())                         # names and shapes, without reading any tensor
    q_proj = weights["model.layers.0.self_attn.q_proj.weight"]  # read now
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from safetensors import safe_open
from torch import Tensor

from outrider.errors import CheckpointError, as_error, on_one_line
from outrider.formats.directory import no_weights
from outrider.formats.tensors.stored import StoredTensor, read_slice, split_experts
from outrider.kernels.deferral import signals_deferred
from outrider.models.spec import DecoderSpec
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields, parse_json, read_json

__all__ = ["EMBEDDING", "HEAD", "StoredTensor", "Weights", "cast", "check_finite", "read_weights", "settle_head"]

SHARD_NAME = re.compile(r"[\w +()=-][\w +()=.-]{0,200}")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_NAME = 500
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"})
PACKED = (".qweight", ".weight_packed", ".weight_scale")
"""Ends of the names of tensors in checkpoints that are published quantised."""
WHOLE = frozenset({"I64", "I32", "I16", "I8", "U8", "BOOL"})


@final
class Weights(Mapping[str, Tensor]):
    """A checkpoint's tensors by name. A lookup reads the tensor, in its stored dtype, to CPU memory.

    Nothing is kept here, so loading a model needs memory for its weights and one tensor more.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = split_experts(stored)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            CheckpointError: for an unknown name, a dtype that is not read, and NaN or infinite values.
        """
        tensor = self._find(name)
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name} in {tensor.file} is stored as {tensor.dtype}, which is not read;"
                " use a bf16, fp16 or fp32 checkpoint"
            )
        with (
            as_error(CheckpointError, f"tensor {name} in {tensor.file} cannot be read", "download it again"),
            signals_deferred(),  # safetensors turns an interruption into an error of its own
            _opened(tensor.file) as file,  # mapped pages count as resident memory until it is closed
        ):
            found = file.get_tensor(tensor.name) if tensor.place is None else read_slice(file, tensor)
            loaded: Tensor = found.clone()
        check_finite(loaded, f"tensor {name} in {tensor.file}")
        return loaded

    def integers(self, name: str) -> Tensor:
        """Read a tensor of any whole-number dtype as int64, such as a map of token ids.

        Raises:
            CheckpointError: for a floating-point dtype.
        """
        tensor = self._find(name)
        if tensor.dtype not in WHOLE:
            raise CheckpointError(f"tensor {name} in {tensor.file} is stored as {tensor.dtype}, not as whole numbers")
        with (
            as_error(CheckpointError, f"tensor {name} in {tensor.file} cannot be read", "download it again"),
            signals_deferred(),
            _opened(tensor.file) as file,
        ):
            return file.get_tensor(tensor.name).to(torch.int64)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header alone."""
        return self._find(name).shape

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read a tensor that must have this shape."""
        self._check_shape(name, shape)
        return self[name]

    def check(self, shapes: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
        """Raise `CheckpointError` unless the checkpoint has exactly these names and shapes.

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


def check_finite(tensor: Tensor, what: str) -> None:
    """Refuse a tensor with NaN or infinite values, which would turn whole rows of products into NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = tensor.aminmax()  # one pass without a copy; NaN wins
    if not (torch.isfinite(low) and torch.isfinite(high)):
        is_bad = ~torch.isfinite(tensor)
        place, count = is_bad.nonzero()[0].tolist(), int(is_bad.sum())
        raise CheckpointError(
            f"{what} holds {float(tensor[tuple(place)])} at {place}, in all {count} of {tensor.numel()} values are not"
            " finite; the file is damaged or its training diverged: download it again"
        )


def cast(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Return a tensor in another dtype; refuse values that overflow."""
    narrow = tensor.to(dtype)
    if tensor.dtype == dtype or not tensor.is_floating_point():
        return narrow
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max and narrow.numel():
        low, high = narrow.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(
                f"{what} holds values up to {float(tensor.abs().max()):.3g}, too large for"
                f" {str(dtype).removeprefix('torch.')}; use dtype bfloat16 or float32"
            )
    return narrow


def settle_head(spec: DecoderSpec, weights: "Weights") -> DecoderSpec:
    """Check a complete decoder's tensors and return its spec, untied if the file stores a different head.

    A config may tie embedding and output head while the file holds a head that differs. The tensors decide, as in
    `transformers`.
    """
    packed = next((name for name in weights if name.endswith(PACKED)), None)
    if packed is not None:
        raise CheckpointError(
            f"{weights.stored[packed].file} holds quantised weights ({packed}), which are read only as a target's; use"
            " the original checkpoint"
        )
    weights.check(spec.weight_shapes(), optional=(HEAD,) if spec.tie_word_embeddings else ())
    if not spec.tie_word_embeddings or HEAD not in weights:
        return spec
    return replace(spec, tie_word_embeddings=_equal(weights[HEAD], weights[EMBEDDING]))


def _equal(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype:
        left, right = left.to(torch.float64), right.to(torch.float64)
    return torch.equal(left, right)


def read_weights(directory: str | Path) -> Weights:
    """Open a checkpoint directory, or one safetensors file; read headers only.

    Raises:
        CheckpointError: for a missing or truncated file, shards that do not match their index, and a directory without
            safetensors.
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
        if not SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{directory / INDEX} names shard {shown_json(shard)}, which is no file name or leaves the directory"
            )
        found |= _read_header(directory / shard)
    for name, shard in shard_of.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(f"{directory / INDEX} places tensor {name} in {shard}, which does not hold it")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    content = Fields(read_json(index), f"{index} is not a safetensors index")
    shards = content.section("weight_map")
    for name in shards:
        if not _is_name(name):
            raise CheckpointError(f"{index} names a tensor {shown_json(name)}; it is damaged: download it again")
    return {name: shards.text(name) for name in shards}


def _is_name(text: str) -> bool:
    """Return whether a tensor may be called so: messages repeat the name as it is."""
    return text.isprintable() and len(text) <= LONGEST_NAME


def _only_file(directory: Path) -> Path:
    files = sorted(file for file in directory.glob("*.safetensors") if not file.name.startswith("adapter_"))
    # a single shard of several is no checkpoint
    if len(files) == 1 and not re.search(r"-\d+-of-0*([2-9]|[1-9]\d)", files[0].stem):
        return files[0]
    if files:
        raise CheckpointError(
            f"{directory} holds {len(files)} safetensors files but no {INDEX}; download the index too"
        )
    raise no_weights(directory)


def _opened(file: Path) -> Any:
    with as_error(CheckpointError, f"{file} is not a valid safetensors file", "download it again"):
        return safe_open(file, framework="pt", device="cpu")


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length) if 8 + length <= size else None
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; download the missing shard") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({on_one_line(str(error))}); check its permissions") from error
    if header is None or size < 8:
        raise CheckpointError(f"{file} is {size} bytes, too short for its own header; download it again")
    fields = parse_json(header, f"{file} is not a safetensors file: the broken safetensors header")
    return _stored_tensors(file, fields, size - 8 - length)


def _stored_tensors(file: Path, header: Fields, num_bytes: int) -> dict[str, StoredTensor]:
    """Read the header's entries, which must cover the `num_bytes` after it exactly, as safetensors requires."""
    stored: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int]] = []
    for name in header:
        if name == "__metadata__":
            continue
        if not _is_name(name):
            raise CheckpointError(f"{file} holds a tensor named {shown_json(name)}; it is damaged: download it again")
        entry = header.section(name)
        start, end = entry.integers("data_offsets", low=0, length=2)
        spans.append((start, end))
        shape = tuple(entry.integers("shape", low=0))
        stored[name] = StoredTensor(name=name, file=file, dtype=entry.text("dtype"), shape=shape)
    expected = max((end for _, end in spans), default=0)
    if expected != num_bytes:
        size = file.stat().st_size
        raise CheckpointError(
            f"{file} is {size} bytes, expected {size - num_bytes + expected}: it is truncated or damaged; download it"
            " again"
        )
    _opened(file)  # checks that entries neither overlap nor leave gaps, and that each is as long as its shape
    return stored


def _nearest_name(name: str, stored: Mapping[str, StoredTensor]) -> str:
    close = difflib.get_close_matches(name, stored, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f" among its {len(stored)}"
