"""Features on disk: shards of about a quarter of a gigabyte, memory-mapped when read.

    features.json                    identity: target, feature layers, dtype, texts
    features-00000.safetensors ...   one tensor `features` [tokens, F]: texts laid end to end, in their order

A shard appears whole or not at all, so an interrupted capture goes on with the first shard that is missing. A store of
another target, other feature layers or other texts is refused with the difference; since the same embedding may sit
under other layers, one text is read again and compared when a finished store is opened.

Worked example: texts of 3, 2 and 4 tokens in one shard: text 1 is rows 3 and 4 of its tensor.

Shapes: T tokens of one text, F features.
"""

import json
import shutil
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from outrider.data.texts import Texts
from outrider.errors import RunError
from outrider.formats.store import fingerprint
from outrider.records.files import size, write_tensors, write_text
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["FeatureStore", "Reader", "store_key"]

MANIFEST, TENSOR = "features.json", "features"
SHARD_BYTES = 256 * 2**20
TEXTS_AT_ONCE = 32
TOLERANCE = 0.05  # relative distance at which features of two computations are still the same target's


class Reader(Protocol):
    """A reader that fills a store; see `FeatureReader`."""

    target: Target
    feature_layers: tuple[int, ...]
    dtype: torch.dtype
    max_tokens: int

    @property
    def width(self) -> int: ...

    def read(self, texts: Sequence[Tensor]) -> list[Tensor]: ...


def store_key(reader: Reader, texts: Texts) -> dict[str, Any]:
    """Return the identity of a store, as JSON: target, feature layers, dtype and texts."""
    spec = reader.target.spec
    return {
        "target_fingerprint": fingerprint(reader.target),
        "target_layers": spec.num_layers,
        "target_dtype": str(spec.dtype).removeprefix("torch."),
        "target_weights": spec.weights,
        "taps": list(reader.feature_layers),
        "dtype": str(reader.dtype).removeprefix("torch."),
        "max_tokens": reader.max_tokens,
        "texts": texts.identity,
    }


@final
class FeatureStore:
    """The features of all texts of one source, in one directory.

    Raises:
        RunError: if the directory holds features of something else.
    """

    def __init__(self, directory: Path, reader: Reader, texts: Texts) -> None:
        self.directory = directory
        self.reader = reader
        self.texts = texts
        self.lengths = [min(texts.num_tokens(index), reader.max_tokens) for index in range(len(texts))]
        self._starts = _shard_starts(self.lengths, reader.width * reader.dtype.itemsize)
        self._offsets = [0, *accumulate(self.lengths)]
        self._open: dict[int, Any] = {}
        self._check_manifest()

    @property
    def num_shards(self) -> int:
        return len(self._starts)

    @property
    def missing(self) -> list[int]:
        """Shards that have not been written."""
        return [shard for shard in range(self.num_shards) if not self._path(shard).exists()]

    def num_bytes(self, shards: Sequence[int]) -> int:
        """Return the bytes of these shards on disk, without headers."""
        tokens = sum(sum(self.lengths[index] for index in self._texts_of(shard)) for shard in shards)
        return tokens * self.reader.width * self.reader.dtype.itemsize

    def begin(self) -> None:
        """Make the directory; refuse if what is missing does not fit on the disk.

        Raises:
            RunError: naming the bytes needed and free.
        """
        needed = self.num_bytes(self.missing)
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise RunError(
                f"the features need {size(needed)} and {size(free)} are free in {self.directory}; "
                "choose another place with --feature-dir, or train with --features live"
            )
        write_text(self.directory / MANIFEST, json.dumps(self._key(), indent=2, sort_keys=True) + "\n")

    def write(self, shards: Sequence[int], listen: Callable[[int], None] = lambda num_tokens: None) -> None:
        """Capture these shards; `listen` is told the tokens of each group of texts that has been read."""
        for shard in shards:
            parts: list[Tensor] = []
            members = self._texts_of(shard)
            for at in range(0, len(members), TEXTS_AT_ONCE):
                some = members[at : at + TEXTS_AT_ONCE]
                tokens = [self.texts.example(index).tokens_T[: self.lengths[index]] for index in some]
                parts += [features_TF.cpu() for features_TF in self.reader.read(tokens)]
                listen(sum(len(text_T) for text_T in tokens))
            write_tensors(self._path(shard), {TENSOR: torch.cat(parts)})

    def check(self) -> None:
        """Read one text again and compare.

        Raises:
            RunError: if what is stored is not what the target says.
        """
        index = next((index for index, length in enumerate(self.lengths) if length), None)
        if index is None:
            return
        stored_TF = self.features(index, self.lengths[index]).double()
        now_TF = self.reader.read([self.texts.example(index).tokens_T[: self.lengths[index]]])[0].cpu().double()
        # negated, so that NaN is refused too
        if not float((stored_TF - now_TF).norm()) <= TOLERANCE * float(now_TF.norm()):
            raise RunError(
                f"the features in {self.directory} are not those of {self.reader.target.spec.name} as it is now; "
                "delete that directory or give another --feature-dir"
            )

    def features(self, index: int, length: int) -> Tensor:
        """Return the first `length` rows [T, F] of a text, copied from the memory map."""
        shard = bisect_right(self._starts, index) - 1
        first = self._offsets[index] - self._offsets[self._starts[shard]]
        rows_TF: Tensor = self._slice(shard)[first : first + length]
        return rows_TF

    def _slice(self, shard: int) -> Any:
        if shard not in self._open:
            path = self._path(shard)
            try:
                handle = safe_open(path, framework="pt").get_slice(TENSOR)  # type: ignore[no-untyped-call]
            except (OSError, SafetensorError) as error:
                raise RunError(f"{path} cannot be read ({error}); delete it and run the same command again") from error
            members = self._texts_of(shard)
            wanted = [sum(self.lengths[index] for index in members), self.reader.width]
            if handle.get_shape() != wanted:
                raise RunError(
                    f"{path} holds {handle.get_shape()}, not {wanted}; delete it and run the same command again"
                )
            self._open[shard] = handle
        return self._open[shard]

    def _check_manifest(self) -> None:
        path = self.directory / MANIFEST
        if not path.exists():
            return
        kept, wanted = read_json(path), self._key()
        for key in sorted(wanted.keys() | kept.keys()):
            if kept.get(key) != wanted.get(key):
                raise RunError(
                    f"{self.directory} holds features with {key}={kept.get(key)}, not {wanted.get(key)}; "
                    "delete that directory or give another --feature-dir"
                )

    def _key(self) -> dict[str, Any]:
        return store_key(self.reader, self.texts)

    def _texts_of(self, shard: int) -> range:
        end = self._starts[shard + 1] if shard + 1 < self.num_shards else len(self.lengths)
        return range(self._starts[shard], end)

    def _path(self, shard: int) -> Path:
        return self.directory / f"features-{shard:05d}.safetensors"


def _shard_starts(lengths: Sequence[int], token_bytes: int) -> list[int]:
    """Return the first text of each shard: a new shard begins when the last has reached its size."""
    starts: list[int] = []
    held = SHARD_BYTES  # the first text begins a shard
    for index, length in enumerate(lengths):
        if held >= SHARD_BYTES:
            starts.append(index)
            held = 0
        held += length * token_bytes
    return starts
