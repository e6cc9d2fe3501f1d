"""Quantising while loading: a checkpoint's matrices become 8-bit or 4-bit codes once, kept in the cache.

    projections                 8 bits (int8) or 4 bits (int4), groups of 32, fp16 scales
    embedding, output head      8 bits in both kinds: 4 bits cost most there
    norms, biases, routers      stay as they are stored

The cache holds one safetensors file per source and kind, `quantised/<key>.safetensors`. Its key is a hash of the source
files' paths, sizes and times, the kind, and the version of the rounding. The file is written matrix by matrix under
another name, under a lock, flushed, and then renamed: an interruption leaves nothing under its name. A file whose
tensors are not the expected ones is made again. A matrix has two tensors there:

    <name>.codes    U8 [O, F], or [O, F / 2] with the codes of features 2j and 2j + 1 in the low and high bits of byte j
    <name>.scales   F16 [O, F / 32]

Example: a model of 7 billion weights takes some minutes the first time, and 7.9 GB (int8) or 4.2 GB (int4) of disk.

Shapes: O output features (rows), F input features, G = F / 32.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from outrider.env import cache_home
from outrider.errors import CheckpointError
from outrider.formats.quantised.packing import pack_pairs, pairs
from outrider.formats.quantised.parts import FLOATS, LazyWeights, floats, part, require_dtype
from outrider.formats.weights import StoredTensor, Weights, read_weights
from outrider.models.spec import DecoderSpec
from outrider.ops.quantised import QuantFormat, QuantisedMatrix, QuantRows
from outrider.ops.rounding import FORMATS, GROUP, Kind, round_rows
from outrider.records.files import size, sync
from outrider.records.progress import Listener, Progress

__all__ = ["quantise_weights"]

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Version of the rounding and of the cached file: part of its key."""
ALWAYS_INT8: Final = ("model.embed_tokens.weight", "lm_head.weight")
ROUTERS: Final = (".mlp.gate.weight", ".feed_forward.router.weight")
"""A wrong choice of experts costs more than a router's bytes."""
MOST_WEIGHTS: Final = 2**24
"""Weights read at once: 64 MB in fp32."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A matrix to be quantised."""

    stored: StoredTensor
    kind: Kind

    @property
    def shape(self) -> tuple[int, int]:
        """(O, F)."""
        num_rows, num_features = self.stored.shape
        return num_rows, num_features

    @property
    def cached_shapes(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """Dtypes and shapes of the two tensors in the cache, by their suffix."""
        num_rows, num_features = self.shape
        width = num_features if self.kind == "int8" else num_features // 2
        return {"codes": ("U8", (num_rows, width)), "scales": ("F16", (num_rows, num_features // GROUP))}


@final
class CachedMatrix(QuantisedMatrix):
    """A matrix in a file of the cache."""

    def __init__(self, kind: Kind, shape: tuple[int, int], codes: StoredTensor, scales: StoredTensor) -> None:
        self._kind = kind
        self._shape = shape
        self._codes = codes
        self._scales = scales

    @property
    def format(self) -> QuantFormat:
        return FORMATS[self._kind]

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def rows(self, start: int, stop: int) -> QuantRows:
        packed: NDArray[np.uint8] = part(self._codes, slice(start, stop)).numpy()
        scales_OG = floats(self._scales, slice(start, stop)).astype(np.float16)
        return QuantRows(codes_OF=packed if self._kind == "int8" else pairs(packed), scales_OG=scales_OG)


def quantise_weights(spec: DecoderSpec, weights: Weights, kind: Kind, listen: Listener) -> LazyWeights:
    """Return a complete checkpoint's weights with its matrices quantised, from the cache or into it.

    Args:
        spec: the decoder, with names and shapes that the checkpoint was checked against.
        listen: told of every matrix that is being quantised.

    Raises:
        CheckpointError: for a width that is no multiple of 32, weights that do not fit, and a cache that cannot be
            written.
    """
    shapes = spec.weight_shapes()
    matrices = (name for name, shape in shapes.items() if len(shape) == 2 and not name.endswith(ROUTERS))
    sources = {name: _source(weights.stored[name], kind) for name in matrices}
    place = cache_home() / "quantised" / f"{_key(weights, kind)}.safetensors"
    cached = _cached(place, sources)
    if cached is None:
        try:
            cached = _build(place, sources, listen)
        except OSError as error:
            raise CheckpointError(
                f"{place} cannot be written ({error.strerror or error}); free space or set OUTRIDER_CACHE"
            ) from error
    tensors = cached
    readers = {name: lambda name=name: _matrix(name, sources[name], tensors) for name in sources}
    return LazyWeights(list(shapes), readers, weights)


def _source(stored: StoredTensor, kind: Kind) -> _Source:
    require_dtype(stored, FLOATS)
    if stored.shape[1] % GROUP:
        raise CheckpointError(
            f"tensor {stored.name} has rows of {stored.shape[1]} features, which is no multiple of {GROUP}; load this"
            " model in bf16"
        )
    return _Source(stored=stored, kind="int8" if stored.name in ALWAYS_INT8 else kind)


def _matrix(name: str, source: _Source, cached: Mapping[str, StoredTensor]) -> CachedMatrix:
    return CachedMatrix(source.kind, source.shape, cached[f"{name}.codes"], cached[f"{name}.scales"])


def _key(weights: Weights, kind: Kind) -> str:
    files = sorted({stored.file.resolve() for stored in weights.stored.values()})
    # size and time identify a file: hashing gigabytes on every call is too slow
    stats = [f"{file}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for file in files]
    identity = "|".join([*stats, kind, str(VERSION)])
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]


def _cached(place: Path, sources: Mapping[str, _Source]) -> dict[str, StoredTensor] | None:
    """Return the cache's tensors by name, or None if the file is missing, damaged or of other matrices."""
    if not place.is_file():
        return None
    try:
        stored = dict(read_weights(place).stored)
    except CheckpointError as error:
        log.warning("%s; quantising again", error)
        return None
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    return stored if found == _entries(sources) else None


def _entries(sources: Mapping[str, _Source]) -> dict[str, tuple[str, tuple[int, int]]]:
    """Return the dtype and shape of every tensor in the cache, in the order of the file."""
    return {
        f"{name}.{suffix}": entry for name, source in sources.items() for suffix, entry in source.cached_shapes.items()
    }


def _build(place: Path, sources: Mapping[str, _Source], listen: Listener) -> dict[str, StoredTensor]:
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        found = _cached(place, sources)  # another process may have made it in the meantime
        if found is not None:
            return found
        for stale in place.parent.glob(f".{place.stem}-*"):  # left by a killed process: this one holds the lock
            stale.unlink()
        handle, scratch = tempfile.mkstemp(dir=place.parent, prefix=f".{place.stem}-")
        try:
            with os.fdopen(handle, "wb") as stream:
                log.info("quantising %s once", next(iter(sources.values())).stored.file.parent)
                for block in _file(sources, listen):
                    stream.write(block)
                num_bytes = stream.tell()
            sync(Path(scratch))
            Path(scratch).chmod(0o644)  # another user may share the cache
            Path(scratch).replace(place)
        finally:  # an interruption too
            Path(scratch).unlink(missing_ok=True)
        log.info("kept the quantised model (%s) in %s", size(num_bytes), place)
        made = _cached(place, sources)
    assert made is not None
    return made


def _file(sources: Mapping[str, _Source], listen: Listener) -> Iterator[bytes]:
    """Yield a safetensors file block by block, so that it needs memory for one range of rows."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in _entries(sources).items():
        start, end = end, end + shape[0] * shape[1] * (1 if dtype == "U8" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for done, (name, source) in enumerate(sources.items()):
        listen(Progress(done, len(sources), f"quantising {name}"))
        yield from _matrix_bytes(source)
    listen(Progress(len(sources), len(sources), "quantised"))


def _matrix_bytes(source: _Source) -> Iterator[bytes]:
    num_rows, num_features = source.shape
    step = max(1, MOST_WEIGHTS // num_features)
    scales: list[bytes] = []
    for start in range(0, num_rows, step):
        weights_OF = floats(source.stored, slice(start, min(start + step, num_rows)))
        rounded = round_rows(weights_OF, source.kind, f"tensor {source.stored.name} in {source.stored.file}")
        scales.append(rounded.scales_OG.tobytes())
        yield (rounded.codes_OF if source.kind == "int8" else pack_pairs(rounded.codes_OF)).tobytes()
    yield from scales
