"""The header of a GGUF file: metadata as Python values, and the name, type, shape and place of every tensor.

    "GGUF" | u32 version | u64 tensors | u64 keys | keys: string, u32 type, value | tensors: string, dims, type, offset
    then padding to `general.alignment` (32 without it), then the tensors' bytes

A string is a u64 length and its bytes, an array a u32 type, a u64 length and its values. No length is trusted: reading
stops at the first one that leaves the file, in time and memory proportional to the header. (`gguf.GGUFReader` makes
several objects of each token, which takes five seconds for a vocabulary of 49,152, and follows any length.)

Example: a file cut after its first key raises "... is not a complete GGUF file (its header ends at byte 57 ...)".
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from outrider.errors import CheckpointError
from outrider.records.display import shown_json

__all__ = ["Header", "TensorEntry", "damaged", "read_header"]

NUMBERS: Final = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
"""Layout of a value by its type: integers, floats and booleans."""
STRING, ARRAY = 8, 9
U32, U64 = NUMBERS[4], NUMBERS[10]
VERSIONS: Final = (2, 3)
MAX_DIMENSIONS: Final = 4
MAX_LENGTH: Final = 2**24
"""Most values of an array and bytes of a string; the largest vocabularies have some 2 ** 18 tokens."""
ALIGNMENT: Final = 32


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor as the header describes it.

    name      the name in the file
    shape     sizes from the outermost dimension, as PyTorch lists them
    kind      the number of its type
    offset    bytes from the start of the tensors' data
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The whole header of one file; `data_start` and `num_bytes` (the file's size) are in bytes."""

    metadata: dict[str, Any]
    tensors: list[TensorEntry]
    alignment: int
    data_start: int
    num_bytes: int


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: naming the file and the fault, for a header that is damaged or longer than the file.
    """
    try:
        with path.open("rb") as stream:
            if path.stat().st_size < 24:
                raise damaged(path, f"it has {path.stat().st_size} bytes")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def damaged(path: Path, reason: str) -> CheckpointError:
    """Return the error for a file that is not what its header says."""
    return CheckpointError(f"{path} is not a complete GGUF file ({reason}); download it again")


@final
class _Reader:
    """A position in the header."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 4

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise damaged(self.path, f"it begins with {self.data[:4]!r}, not with b'GGUF'")
        version = self.number(U32)
        if version not in VERSIONS:
            raise damaged(self.path, f"its version is {version}, versions 2 and 3 are read")
        num_tensors, num_keys = self.number(U64), self.number(U64)
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.text()
            if key in metadata:
                raise damaged(self.path, f"its key {shown_json(key)} occurs twice")
            metadata[key] = self.value(self.number(U32))
        tensors = [self.entry() for _ in range(num_tensors)]
        alignment = self.alignment(metadata)
        start = -(-self.at // alignment) * alignment
        size = len(self.data)
        return Header(metadata=metadata, tensors=tensors, alignment=alignment, data_start=start, num_bytes=size)

    def entry(self) -> TensorEntry:
        name, dimensions = self.text(), self.number(U32)
        if dimensions > MAX_DIMENSIONS:
            raise damaged(self.path, f"a tensor has {dimensions} dimensions")
        # the file lists the innermost dimension first
        shape = tuple(reversed([self.number(U64) for _ in range(dimensions)]))
        return TensorEntry(name=name, shape=shape, kind=self.number(U32), offset=self.number(U64))

    def alignment(self, metadata: dict[str, Any]) -> int:
        found = metadata.get("general.alignment", ALIGNMENT)
        if type(found) is not int or found < 1 or found & (found - 1):
            raise damaged(self.path, f"its general.alignment is {shown_json(found)}, not a power of two")
        return found

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(self.layout(kind))
        inner, count = self.number(U32), self.length()
        if inner == STRING:
            return [self.text() for _ in range(count)]
        layout = self.layout(inner)
        return list(struct.unpack(f"<{count}{layout.format[1:]}", self.take(count * layout.size)))

    def layout(self, kind: int) -> struct.Struct:
        if kind not in NUMBERS:
            raise damaged(self.path, f"a key has a value of type {kind}")
        return NUMBERS[kind]

    def text(self) -> str:
        start = self.at
        try:
            return self.take(self.length()).decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(self.path, f"the text at byte {start} is not UTF-8") from None

    def length(self) -> int:
        found: int = self.number(U64)
        if found > min(MAX_LENGTH, len(self.data)):
            raise damaged(self.path, f"a text or an array at byte {self.at - 8} has a length of {found}")
        return found

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def take(self, size: int) -> bytes:
        start = self.at
        self.at += size
        if self.at > len(self.data):
            raise damaged(self.path, f"its header would end behind byte {len(self.data)}, the last one")
        return self.data[start : self.at]
