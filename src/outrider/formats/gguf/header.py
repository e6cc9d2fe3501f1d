"""A check of a GGUF file's header, before `gguf.GGUFReader` trusts it.

    "GGUF" | u32 version | u64 tensors | u64 keys | keys: string, u32 type, value | tensors: string, dims, type, offset

A string is a u64 length and its bytes, an array a u32 type, a u64 length and its values. `GGUFReader` trusts every
length: a damaged header with 2^60 values would keep it busy for years. This check stops at the first length that leaves
the file, in time proportional to the header.

Example: a file cut after its first key raises "... is not a complete GGUF file (its header ends at byte 57 ...)".
"""

import mmap
import struct
from pathlib import Path
from typing import Final, final

from outrider.errors import CheckpointError

__all__ = ["check_header"]

SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type: integers, floats and booleans."""
STRING, ARRAY = 8, 9
VERSIONS: Final = (2, 3)
MAX_DIMENSIONS: Final = 4


def check_header(path: Path) -> None:
    """Refuse a file whose header is damaged or longer than the file.

    Raises:
        CheckpointError: naming the file and the fault.
    """
    try:
        with path.open("rb") as stream:
            if path.stat().st_size < 24:
                raise _damaged(path, f"it has {path.stat().st_size} bytes")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Walk(path, data).check()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


@final
class _Walk:
    """A position in the header."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 4

    def check(self) -> None:
        if self.data[:4] != b"GGUF":
            raise _damaged(self.path, f"it begins with {self.data[:4]!r}, not with b'GGUF'")
        version = self.number(4)
        if version not in VERSIONS:
            raise _damaged(self.path, f"its version is {version}, versions 2 and 3 are read")
        num_tensors, num_keys = self.number(8), self.number(8)
        for _ in range(num_keys):
            self.string()
            self.value(self.number(4))
        for _ in range(num_tensors):
            self.string()
            dimensions = self.number(4)
            if dimensions > MAX_DIMENSIONS:
                raise _damaged(self.path, f"a tensor has {dimensions} dimensions")
            # u64 per dimension, u32 type, u64 offset
            self.skip(8 * dimensions + 12)

    def number(self, size: int) -> int:
        start = self.at
        self.skip(size)
        return int(struct.unpack_from("<I" if size == 4 else "<Q", self.data, start)[0])

    def string(self) -> None:
        self.skip(self.number(8))

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            inner, count = self.number(4), self.number(8)
            if inner == STRING:
                for _ in range(count):
                    self.string()
            else:
                self.skip(count * self.size_of(inner))
        else:
            self.skip(self.size_of(kind))

    def size_of(self, kind: int) -> int:
        if kind not in SIZES:
            raise _damaged(self.path, f"a key has a value of type {kind}")
        return SIZES[kind]

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise _damaged(self.path, f"its header would end behind byte {len(self.data)}, the last one")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a complete GGUF file ({reason}); download it again")
