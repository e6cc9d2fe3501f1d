"""The GGUF files that Outrider and llama.cpp both read: one model in several types.

    published   the file as its authors published it, where the target is a GGUF file
    bf16        the target's widened weights, written by llama.cpp's converter
    q8_0 ...    made from the bf16 file by `llama-quantize`

A published file that is itself quantised is widened first, so q8_0, q4_0 and q4_k_m hold a quantised model quantised
again: fit to compare speeds, not quality. Each has its draft model beside it, in the same type. Files are written once,
under the cache of models, and are complete under their names.

Example: `stored_files(root, "smollm2-135m", None, ["q8_0"])` gives `.../peers/f3a1c2d4-q8_0.gguf` and its draft.
"""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from roster import LLAMA
from weights import prepare

from outrider.errors import CheckpointError, ConfigError, nearest
from outrider.formats.locate import gguf_file, locate
from outrider.records.files import replacing

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
        ConfigError: for an unknown name.
        CheckpointError: if llama.cpp was not built, or its converter or quantiser fails.
    """
    for name in names:
        if name not in FILES:
            raise ConfigError(f"unknown file '{name}'{nearest(name, FILES)}")
    weights = prepare(root, target, draft)
    if weights.gguf is None or weights.draft_gguf is None:
        raise CheckpointError(f"llama.cpp's converter is missing or failed, see {root / LLAMA}; run `make peers`")
    whole, small, found = weights.gguf, weights.draft_gguf, []
    with FileLock(whole.with_name("files.lock")):
        for name in names:
            published = gguf_file(target) if name == PUBLISHED else None
            if name == PUBLISHED and published is None:
                continue
            kind = PUBLISHED_DRAFT if name == PUBLISHED else TYPES.get(name)
            found.append(
                StoredFile(
                    name=name,
                    path=published or quantised(root, whole, kind),
                    draft=quantised(root, small, kind),
                    origin="as published" if published else f"from {locate(target).name}, widened to bf16",
                )
            )
    return found


def quantised(root: Path, source: Path, kind: str | None) -> Path:
    """Return a bf16 file's weights in another type, made by `llama-quantize` once; the file itself for None.

    Raises:
        CheckpointError: if the quantiser is missing or fails.
    """
    if kind is None:
        return source
    file = source.with_name(source.name.replace(f"-{BF16}.", f"-{kind.lower()}."))
    binary = root / LLAMA / "build" / "bin" / "llama-quantize"
    if file.exists():
        return file
    if not binary.exists():
        raise CheckpointError(f"{binary} does not exist; run `make peers`")
    with replacing(file) as part:
        command = [str(binary), str(source), str(part), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"llama-quantize failed on {source.name} with {kind}: {last[:200]}")
    return file
