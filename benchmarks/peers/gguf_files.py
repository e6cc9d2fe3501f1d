"""The GGUF files that Outrider and llama.cpp both read: one model in several types.

    published   the file as its authors published it, where the target is a GGUF file
    bf16        the target's widened weights, written by llama.cpp's converter
    q8_0 ...    made from the bf16 file by `llama-quantize`

A published file that is itself quantised is widened first, so q8_0, q4_0 and q4_k_m hold a quantised model quantised
again: fit to compare speeds, not quality. Files are written once, under the cache of models, and are complete under
their names.

Example: `stored_files(find_llama(), "smollm2-135m", ["q8_0"])` gives `.../gguf/f3a1c2d4-q8_0.gguf`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from outrider.errors import ConfigError, nearest
from outrider.formats.locate import gguf_file, locate
from outrider.llama_cpp.environment import Llama
from outrider.llama_cpp.files import converted, quantised

PUBLISHED, BF16 = "published", "bf16"
TYPES = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4_K_M"}
FILES = (PUBLISHED, *TYPES, BF16)


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file to compare on, and how it was made."""

    name: str
    path: Path
    origin: str


def check_names(names: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: for an unknown name.
    """
    for name in names:
        if name not in FILES:
            raise ConfigError(f"unknown file '{name}'{nearest(name, FILES)}")


def stored_files(llama: Llama, target: str, names: Iterable[str]) -> list[StoredFile]:
    """Find or write the files of these names; a published file only where the target has one.

    Raises:
        ConfigError: if this llama.cpp has no converter or quantiser.
        CheckpointError: if one of them fails.
    """
    directory, published = locate(target), gguf_file(target)
    found = []
    for name in names:
        if name == PUBLISHED and published is None:
            continue
        own, kind = published if name == PUBLISHED else None, TYPES.get(name)
        whole = own or converted(llama, directory, BF16)
        found.append(
            StoredFile(
                name=name,
                path=quantised(llama, whole, kind) if kind else whole,
                origin="as published" if own else f"from {directory.name}, widened to bf16",
            )
        )
    return found
