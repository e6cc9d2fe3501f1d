"""A GGUF model on disk, in one file or in parts.

`llama-gguf-split` names parts `NAME-00001-of-00003.gguf` and numbers them in the metadata (`split.no`, `split.count`,
`split.tensors.count`). The first part holds the metadata; a tensor may be in any part. One part can look like a whole
model (without `output.weight`, like tied embeddings), so all parts are read, or the missing one is named.

Example: `open_gguf(Path("model-00002-of-00002.gguf"))` opens both parts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from outrider.errors import CheckpointError
from outrider.formats.gguf.header import read_header
from outrider.formats.gguf.tensors import GgufTensor, placed_tensors, split_experts
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields

__all__ = ["GgufFile", "open_gguf", "parts_of"]

PART_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
ORIGINAL: Final = "use the original checkpoint"
OTHER_TYPES: Final = {
    "adapter": "a LoRA adapter; merge it into its model and convert the result",
    "mmproj": "the image part of a model; pass the file of its language model",
    "vocab": "a vocabulary without weights; pass the file of the model",
    "imatrix": "an importance matrix; pass the file of the model",
}


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """An opened GGUF model: metadata as Python values, and tensors by name, those of experts one by one."""

    path: Path
    metadata: Fields
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return self.metadata.text("general.architecture", "None")

    def key(self, key: str) -> str:
        """Return a full metadata key: `.x` means `{architecture}.x`."""
        return self.architecture + key if key.startswith(".") else key

    def require(self, key: str) -> Any:
        """Return a metadata value; raise `CheckpointError` if it is missing."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no metadata key {key}; it is not a language model this reads")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return a metadata value or the default."""
        return self.metadata.get(self.key(key), default)

    def integer(self, key: str, *, low: int = 1, high: int = 2**30) -> int:
        """Return a required integer within its range."""
        self.require(key)
        return self.metadata.integer(self.key(key), low=low, high=high)


def parts_of(path: Path) -> list[Path]:
    """Return all files of the model that this file belongs to, in order.

    Raises:
        CheckpointError: naming the part that is missing.
    """
    found = PART_NAME.fullmatch(path.stem)
    if found is None or int(found["count"]) < 2:
        return [path]
    count = int(found["count"])
    parts = [path.with_name(f"{found['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{path} is one of {count} parts and {missing[0]} is missing ({len(missing)} in all); download every part"
        )
    return parts


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF model with all its parts.

    Raises:
        CheckpointError: for a file that is missing or damaged, or parts that do not belong together.
    """
    parts = [_open_one(part) for part in parts_of(path)]
    first = parts[0]
    _check_kind(first)
    _check_count(first, len(parts))
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        found, count = (part.metadata.integer(f"split.{key}", None) for key in ("no", "count"))
        if len(parts) > 1 and (found not in (None, number) or count not in (None, len(parts))):
            raise CheckpointError(
                f"{part.path} says that it is part {found} of {count}, counted from 0, but its name says {number} of"
                f" {len(parts)}; download the parts of one model"
            )
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise CheckpointError(f"{part.path} holds {min(twice)} again; download the parts of one model")
        tensors |= part.tensors
    expected = first.metadata.integer("split.tensors.count", None)
    if len(parts) > 1 and expected not in (None, len(tensors)):
        raise CheckpointError(f"{first.path} and its parts hold {len(tensors)} tensors, expected {expected}")
    return GgufFile(path=first.path, metadata=first.metadata, tensors=split_experts(tensors))


def _open_one(path: Path) -> GgufFile:
    header = read_header(path)
    metadata = header.metadata
    for name in (*metadata, *(entry.name for entry in header.tensors)):
        if not name.isprintable() or len(name) > 500:
            raise CheckpointError(f"{path} has an entry named {shown_json(name)}; it is damaged: download it again")
    fields = Fields(metadata, str(path), remedy="convert it anew, or use the original checkpoint")
    return GgufFile(path=path, metadata=fields, tensors=placed_tensors(path, header))


def _check_kind(first: GgufFile) -> None:
    kind = first.metadata.text("general.type", "model")
    if kind != "model" or "adapter.type" in first.metadata:
        what = OTHER_TYPES.get(
            "adapter" if "adapter.type" in first.metadata else kind,
            f"of type {shown_json(kind)}; pass the file of the model",
        )
        raise CheckpointError(f"{first.path} is {what}")


def _check_count(first: GgufFile, num_parts: int) -> None:
    count = first.metadata.integer("split.count", None, low=0)
    if count is not None and count > 1 and num_parts == 1:
        number = first.metadata.integer("split.no", 0) + 1
        raise CheckpointError(
            f"{first.path} is part {number} of {count}; put all parts into one directory under their own names,"
            f" NAME-{number:05d}-of-{count:05d}.gguf"
        )
