"""The shipped heads in one archive: written by a maintainer, unpacked into the cache of an installed package.

A wheel does not hold the heads, which are larger than it. The archive is a zip of `TARGET/KIND/FILE` and a manifest
with the size and the SHA-256 of every file. Only such files that the manifest lists are unpacked, and all are compared
with their digests before any head is installed.

    manifest.json     {"schema": "outrider.heads/1", "files": {"smollm2-135m/eagle3/config.json":
                                                               {"bytes": 1136, "sha256": "..."}}}

Example: `install_heads(Path("outrider-heads.zip"))` fills `~/.cache/outrider/heads` and returns the heads' names.
"""

import hashlib
import json
import lzma
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import httpx
from filelock import FileLock

from outrider.errors import CheckpointError, RunError, on_one_line
from outrider.formats.locate import CONFIG, cache_directory
from outrider.records.files import sha256_of

__all__ = ["fetch_heads", "install_heads", "write_archive"]

MANIFEST: Final = "manifest.json"
SCHEMA: Final = "outrider.heads/1"
NAME: Final = re.compile(r"[A-Za-z0-9][\w.+-]*/[A-Za-z0-9][\w.+-]*/[A-Za-z0-9][\w.+-]*", re.ASCII)
MOST_BYTES: Final = 2_000_000_000
"""Most bytes of an archive, and of its unpacked files."""
MOST_MANIFEST_BYTES: Final = 1_000_000
DAMAGED: Final = (zipfile.BadZipFile, zlib.error, struct.error, lzma.LZMAError, EOFError, ValueError)
STAMP: Final = (1980, 1, 1, 0, 0, 0)
CHUNK: Final = 1 << 20
TIMEOUT_S: Final = 30.0


def write_archive(checkpoints: Path, archive: Path) -> dict[str, Any]:
    """Write every head under `checkpoints/TARGET/KIND` into one zip, the same bytes for the same heads.

    Returns:
        The manifest.

    Raises:
        CheckpointError: if there is no head, or a file in a folder of a head has an unusual name.
    """
    heads = [config.parent for config in sorted(checkpoints.glob(f"*/*/{CONFIG}"))]
    if not heads:
        raise CheckpointError(f"{checkpoints} holds no TARGET/KIND/{CONFIG}; give a folder like checkpoints/")
    files = [file for head in heads for file in sorted(head.iterdir())]
    names = {file.relative_to(checkpoints).as_posix(): file for file in files}
    for name, file in names.items():
        if not NAME.fullmatch(name) or not file.is_file():
            raise CheckpointError(
                f"{file} cannot be archived; heads hold plain files named with letters, digits, - and ."
            )
    listed = {name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for name, file in names.items()}
    manifest = {"schema": SCHEMA, "files": listed}
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".heads-", dir=archive.parent) as scratch:
        part = Path(scratch) / archive.name
        with zipfile.ZipFile(part, "w") as zipped:
            zipped.writestr(zipfile.ZipInfo(MANIFEST, STAMP), json.dumps(manifest, indent=2) + "\n")
            for name, file in names.items():
                with file.open("rb") as stream, zipped.open(zipfile.ZipInfo(name, STAMP), "w") as member:
                    shutil.copyfileobj(stream, member, CHUNK)
        part.replace(archive)
    return manifest


def fetch_heads(source: str) -> list[str]:
    """Install the heads of an archive on this machine or at an http(s) address, and return their names.

    Raises:
        CheckpointError: if it cannot be read or is damaged; no head has been replaced then.
        RunError: if it cannot be downloaded, or the disk is full.
    """
    if not source.lower().startswith(("http://", "https://")):
        return install_heads(Path(source).expanduser())
    cache_directory().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".heads-", dir=cache_directory()) as scratch:
        file = Path(scratch) / "heads.zip"
        _download(source, file)
        return install_heads(file, source)


def install_heads(archive: Path, source: str | None = None) -> list[str]:
    """Check a whole archive, install its heads under `cache_directory()/heads`, and return their names.

    Args:
        source: name of the archive in messages.

    Raises:
        CheckpointError: if it is no such archive, or damaged; no head has been replaced then.
        RunError: if the cache cannot be written.
    """
    said, place = source or str(archive), cache_directory() / "heads"
    if not archive.is_file():
        kind = "a directory" if archive.is_dir() else "missing"
        raise CheckpointError(f"{said} is {kind}; give the .zip of the heads that came with the release")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(str(place / ".lock")),
            tempfile.TemporaryDirectory(prefix=".heads-", dir=place) as scratch,
            zipfile.ZipFile(archive) as zipped,
        ):
            fresh = Path(scratch) / "new"
            _unpack(zipped, _manifest(zipped, said), fresh, said)
            return [_put(head, place, Path(scratch)) for head in sorted(fresh.glob("*/*"))]
    except (*DAMAGED, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{said} is no sound archive of heads ({error}); fetch it again") from error
    except OSError as error:
        raise RunError(f"the heads of {said} could not be written to {place} ({error.strerror or error})") from error


def _manifest(zipped: zipfile.ZipFile, said: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the manifest's files, after every check that needs no unpacking."""
    try:
        with zipped.open(MANIFEST) as member:
            read = json.loads(member.read(MOST_MANIFEST_BYTES))
        files: dict[str, dict[str, Any]] = read["files"]
        if read["schema"] != SCHEMA:
            raise CheckpointError(
                f"{said} has the schema {read['schema']!r:.60}, and {SCHEMA} is read; update outrider"
            )
        sound = bool(files) and all(
            NAME.fullmatch(name)
            and type(file["bytes"]) is int
            and file["bytes"] >= 0
            and isinstance(file["sha256"], str)
            for name, file in files.items()
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{said} has no readable {MANIFEST} ({type(error).__name__}: {error})") from error
    if not sound:
        raise CheckpointError(f"{said} lists a file that is not TARGET/KIND/FILE with its size and digest; not used")
    # a zip may hold a name twice; readers differ in which one they take
    held = [member.filename for member in zipped.infolist()]
    strange = sorted(set(held) ^ {MANIFEST, *files})
    if strange or len(held) != len(files) + 1:
        name = strange[0] if strange else next(name for name in held if held.count(name) > 1)
        raise CheckpointError(f"{said}: {name!r:.120} is not both in the archive, once, and in its manifest; not used")
    if (total := sum(file["bytes"] for file in files.values())) > MOST_BYTES:
        raise CheckpointError(f"{said} unpacks to {total:,} bytes, more than {MOST_BYTES:,}; not used")
    return files


def _unpack(zipped: zipfile.ZipFile, files: Mapping[str, Mapping[str, Any]], fresh: Path, said: str) -> None:
    for name, listed in files.items():
        file = fresh / name
        file.parent.mkdir(parents=True, exist_ok=True)
        # copying stops past the listed size, so a zip bomb cannot fill the disk
        with zipped.open(name) as member, file.open("wb") as copy:
            num_bytes, sha256 = _copied(member, copy, listed["bytes"])  # type: ignore[arg-type]
        if (num_bytes, sha256) != (listed["bytes"], listed["sha256"].lower()):
            raise CheckpointError(
                f"{said}: {name} is damaged, its size or SHA-256 is not that of the manifest; fetch again"
            )


def _copied(source: BinaryIO, copy: BinaryIO, most: int) -> tuple[int, str]:
    """Copy at most one chunk beyond `most` bytes; return the number of bytes and their digest."""
    digest, num_bytes = hashlib.sha256(), 0
    while num_bytes <= most and (chunk := source.read(CHUNK)):
        copy.write(chunk)
        digest.update(chunk)
        num_bytes += len(chunk)
    return num_bytes, digest.hexdigest()


def _put(head: Path, place: Path, scratch: Path) -> str:
    """Move a complete head to its place, and an older one to the scratch directory."""
    name = f"{head.parent.name}/{head.name}"
    final = place / name
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = scratch / "old" / name
        old.parent.mkdir(parents=True, exist_ok=True)
        final.rename(old)
    head.rename(final)
    return name


def _download(address: str, file: Path) -> None:
    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=TIMEOUT_S) as answer, file.open("wb") as copy:
            answer.raise_for_status()
            for chunk in answer.iter_bytes(CHUNK):
                if copy.write(chunk) and copy.tell() > MOST_BYTES:
                    raise RunError(f"{address} sends more than {MOST_BYTES:,} bytes; it is no archive of heads")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = on_one_line(str(error)) or type(error).__name__
        raise RunError(
            f"{address} could not be downloaded ({reason}); check it, or give the path of the file"
        ) from error
    except OSError as error:
        raise RunError(f"{address} could not be kept in {file.parent} ({error.strerror or error})") from error
