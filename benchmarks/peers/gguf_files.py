"""The GGUF files that Outrider and llama.cpp both read: one model in several types.

    published   the file as its authors published it, where the target is a GGUF file
    bf16        the target's widened weights, written by llama.cpp's converter
    q8_0 ...    made from the bf16 file by `llama-quantize`

A published file that is itself quantised is widened first, so q8_0, q4_0 and q4_k_m hold a quantised model quantised
again: fit to compare speeds, not quality. Each has its draft model beside it, in the same type. Files are written once,
under the cache of models, and are complete under their names.

Example: `stored_files(root, "smollm2-135m", None, ["q8_0"])` gives `.../gguf/f3a1c2d4-q8_0.gguf` and its draft.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from roster import LLAMA
from weights import prepare

from outrider.errors import ConfigError, nearest
from outrider.formats.locate import gguf_file, locate
from outrider.llama_cpp.environment import find_llama
from outrider.llama_cpp.files import converted, quantised

PUBLISHED, BF16 = "published", "bf16"
TYPES = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4_K_M"}
FILES = (PUBLISHED, *TYPES, BF16)
PUBLISHED_DRAFT = "Q4_1"
"""Type of the draft beside a published file: that of the embedded target's file."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file to compare on, the draft model in the same type, and how the file was made."""

    name: str
    path: Path
    draft: Path
    origin: str


def stored_files(root: Path, target: str, draft: str | None, names: Iterable[str]) -> list[StoredFile]:
    """Find or write the files of these names; a published file only where the target has one.

    Raises:
        ConfigError: for an unknown name, or if llama.cpp was not built.
        CheckpointError: if its converter or quantiser fails.
    """
    for name in names:
        if name not in FILES:
            raise ConfigError(f"unknown file '{name}'{nearest(name, FILES)}")
    weights, llama = prepare(root, target, draft), find_llama(root / LLAMA)
    whole, small = (converted(llama, directory, BF16) for directory in (weights.model, weights.draft))
    found = []
    for name in names:
        published = gguf_file(target) if name == PUBLISHED else None
        if name == PUBLISHED and published is None:
            continue
        kind = PUBLISHED_DRAFT if name == PUBLISHED else TYPES.get(name)
        found.append(
            StoredFile(
                name=name,
                path=published or (quantised(llama, whole, kind) if kind else whole),
                draft=quantised(llama, small, kind) if kind else small,
                origin="as published" if published else f"from {locate(target).name}, widened to bf16",
            )
        )
    return found
