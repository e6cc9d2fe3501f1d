"""Training texts on disk: what a target wrote, in shards, with the loss mask that says which tokens it wrote.

    manifest.json               what all shards are of: target, settings, provenance, totals
    shard-00000.safetensors     `tokens` int32 and `learn` bool, texts laid end to end; `offsets` int64 [texts + 1];
                                `prompt_hashes` int64 [texts]; schema, target and counts in the header
    shard-00000.jsonl           the same conversations for people, one a line: messages, seeds, why each answer ended

A shard is there whole or not at all, so the shards on disk are the list of what is finished. Reading maps the files
into memory: a data set may be larger than memory.

The held-out split is a function of the prompt and nothing else. A prompt's hash is a number in [0, 2^63); a text is
held out if that number lies below `fraction * 2^63`. So a prompt is on the same side in every data set, whatever is
added to it, and a larger fraction holds out what a smaller one did, and more.

Example: `Dataset.open("data/smollm2").split(0.05)` gives the two sides as the training loop takes them.

Shapes: T tokens of one text.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outrider.data.contamination import words_of
from outrider.data.texts import Data, Example
from outrider.errors import ConfigError, RunError, on_one_line
from outrider.formats.store import fingerprint, fingerprints
from outrider.records.display import shown_json
from outrider.records.files import replacing, sync, writing
from outrider.records.json_fields import parse_json, read_json
from outrider.target import Target

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Dataset",
    "Text",
    "check_shard",
    "prompt_hash",
    "read_header",
    "read_manifest",
    "write_shard",
]

SCHEMA = "outrider.texts/1"
MANIFEST = "manifest.json"
HASH_BITS = 63
HEADER = "outrider"  # the one key of a shard's metadata: several would be stored in no particular order
DTYPES = {"tokens": "I32", "learn": "BOOL", "offsets": "I64", "prompt_hashes": "I64"}
"""Dtypes of a shard's tensors, as safetensors names them."""
AGAIN = "write the data set again"
DELETE = "delete this shard and all later ones, then run the same outrider synthesize again"


class Text(NamedTuple):
    """One text: token ids, which of them the target wrote, and the hash of the prompt that it began with."""

    tokens: tuple[int, ...]
    learn: tuple[bool, ...]
    prompt_hash: int


def prompt_hash(prompt: str) -> int:
    """Return a number in [0, 2^63) for a user's first message; case, spacing and punctuation make no difference.

    >>> prompt_hash("Why is the sky blue?") == prompt_hash("why is the  sky blue")
    True
    """
    # a prompt without words, such as an emoji, is hashed as it is
    words = words_of(prompt) or unicodedata.normalize("NFKC", prompt).split()
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:8], "big") >> (64 - HASH_BITS)


def write_shard(path: Path, texts: Sequence[Text], header: Mapping[str, Any]) -> None:
    """Write one shard, atomically. Equal texts and headers give equal bytes.

    Raises:
        RunError: if it cannot be written.
    """
    lengths = torch.tensor([0, *(len(text.tokens) for text in texts)])
    tensors = {
        "learn": torch.tensor([flag for text in texts for flag in text.learn], dtype=torch.bool),
        "offsets": lengths.cumsum(0),
        "prompt_hashes": torch.tensor([text.prompt_hash for text in texts], dtype=torch.int64),
        "tokens": torch.tensor([token for text in texts for token in text.tokens], dtype=torch.int32),
    }
    kept = json.dumps({"schema": SCHEMA, "digest": _digest(tensors), **header}, sort_keys=True)
    with writing(path):
        with replacing(path) as part:
            save_file(tensors, part, metadata={HEADER: kept})
        sync(path.parent)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of the tensors, which the header keeps."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a data set.

    Raises:
        RunError: if it is missing, damaged or of another version.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise RunError(f"{directory} holds no {MANIFEST}; name a directory that outrider synthesize wrote")
    manifest = read_json(path, RunError, AGAIN)
    _check_schema(manifest, path)
    target, settings = manifest.section("target"), manifest.section("settings")
    target.text("name")
    target.text("fingerprint")
    settings.number("heldout_fraction", None, low=0.0, high=1.0)
    return manifest.plain()


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a shard; opening the file checks its size.

    Raises:
        RunError: if it is truncated, damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER, "{}")
            names = set(file.keys())
            kinds = {name: str(file.get_slice(name).get_dtype()) for name in names & DTYPES.keys()}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is truncated or damaged ({on_one_line(str(error))}); {DELETE}") from error
    header = parse_json(text, f"{path}, its header", RunError, DELETE)
    _check_schema(header, path)
    if kinds != DTYPES or names != DTYPES.keys():
        held = ", ".join(sorted(map(repr, names)))
        raise RunError(f"{path} holds {held:.200}, which are not the tensors of a shard; {DELETE}")
    header.text("target_fingerprint")
    header.text("digest")
    return header.plain()


def check_shard(path: Path, header: Mapping[str, Any]) -> None:
    """Read a shard whole and compare it with its header.

    Raises:
        RunError: if a tensor was changed.
    """
    tensors = _fitting(path)
    if _digest(tensors) != header["digest"]:
        raise RunError(f"{path} was changed since it was written: its digest is not {header['digest']:.16}; {DELETE}")
    if isinstance(header.get("counts"), Mapping):
        found = [len(tensors["offsets"]) - 1, len(tensors["tokens"]), int(tensors["learn"].sum())]
        if found != [header["counts"].get(name) for name in ("num_texts", "num_tokens", "num_learnt_tokens")]:
            raise RunError(f"{path} holds other counts than its header says; {DELETE}")


def _check_schema(found: Mapping[str, Any], path: Path) -> None:
    schema = found.get("schema")
    if schema != SCHEMA:
        raise RunError(
            f"{path} has schema {shown_json(schema).strip(chr(39))} but this version reads {SCHEMA}; {AGAIN}"
        )


def shard_paths(directory: Path) -> list[Path]:
    """Return the finished shards, in order.

    Raises:
        RunError: if one is missing between others.
    """
    paths = sorted(directory.glob("shard-*.safetensors"))
    for number, path in enumerate(paths):
        if path.stem != f"shard-{number:05}":
            raise RunError(f"{directory} lacks shard-{number:05} but holds {path.name}; restore the missing shard")
    return paths


def _opened(path: Path) -> Mapping[str, Tensor]:
    """Map a shard's tensors into memory."""
    try:
        now = path.stat()
        return _mapped(path, now.st_ino, now.st_mtime_ns, now.st_size)  # a file that was replaced is mapped anew
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is truncated or damaged ({on_one_line(str(error))}); {DELETE}") from error


@lru_cache(maxsize=256)
def _mapped(path: Path, inode: int, modified: int, size: int) -> Mapping[str, Tensor]:
    """Map a shard's tensors into memory; again when the file is another one."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in DTYPES}


def _fitting(path: Path) -> Mapping[str, Tensor]:
    """Return a shard's tensors, once their lengths are known to fit.

    Raises:
        RunError: if they do not.
    """
    tensors = _opened(path)
    offsets, num_tokens = tensors["offsets"], tensors["tokens"].numel()
    fits = all(tensor.dim() == 1 for tensor in tensors.values()) and len(offsets) == len(tensors["prompt_hashes"]) + 1
    fits = fits and len(tensors["learn"]) == num_tokens
    if not fits or offsets[0] != 0 or offsets[-1] != num_tokens or (offsets.diff() < 1).any():
        raise RunError(f"{path} is damaged: its offsets do not fit its {num_tokens} tokens; {DELETE}")
    return tensors


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Texts of one or more directories, by number; fits `outrider.data.texts.Texts`.

    target_fingerprint   fingerprint of the target that wrote them
    heldout_fraction     recorded fraction; None where directories differ
    places_N4            int64: shard, start and end there, and the prompt's hash of each text
    identity             a hash: equal for equal texts in the same order
    """

    target: str
    target_fingerprint: str
    heldout_fraction: float | None
    shards: tuple[Path, ...]
    digests: tuple[str, ...]
    places_N4: Tensor
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(self.digests).encode() + self.places_N4.numpy().tobytes())
        object.__setattr__(self, "identity", digest.hexdigest()[:16])

    @classmethod
    def open(cls, *directories: str | Path, target: Target | None = None, max_tokens: int | None = None) -> Self:
        """Join the shards of these directories.

        Args:
            target: the target that must have written them.
            max_tokens: texts are cut to this many tokens, and left out if nothing that the target wrote remains.

        Raises:
            ConfigError: if no directory is given, or `max_tokens` is below 2.
            RunError: if a shard is damaged or missing, of another version, or written by another target.
        """
        if not directories or (max_tokens is not None and max_tokens < 2):
            raise ConfigError(f"give at least one directory, and max_tokens={max_tokens} of at least 2 or none")
        roots = [Path(directory) for directory in directories]
        manifests = [read_manifest(root) for root in roots]
        for root, manifest in zip(roots, manifests, strict=True):
            _check_target(manifest["target"], manifests[0]["target"], root)
            if target is not None and manifest["target"]["fingerprint"] not in fingerprints(target):
                _check_target(manifest["target"], {"name": target.spec.name, "fingerprint": fingerprint(target)}, root)
        shards = [path for root in roots for path in shard_paths(root)]
        if not shards:
            raise RunError(f"{roots[0]} holds no finished shard; run outrider synthesize to its end")
        wanted: str = manifests[0]["target"]["fingerprint"]
        headers = [_header_of(path, wanted) for path in shards]
        for path, header in zip(shards, headers, strict=True):
            check_shard(path, header)
        fractions = {manifest["settings"].get("heldout_fraction") for manifest in manifests}
        return cls(
            target=manifests[0]["target"]["name"],
            target_fingerprint=wanted,
            heldout_fraction=fractions.pop() if len(fractions) == 1 else None,
            shards=tuple(shards),
            digests=tuple(header["digest"] for header in headers),
            places_N4=torch.cat([_places(number, path, max_tokens) for number, path in enumerate(shards)]),
        )

    def __len__(self) -> int:
        return len(self.places_N4)

    def example(self, index: int) -> Example:
        """Return text `index`, its features None."""
        shard, start, end, _ = self.places_N4[index].tolist()
        tensors = _opened(self.shards[shard])
        return Example(tensors["tokens"][start:end].long(), tensors["learn"][start:end].clone())

    def num_tokens(self, index: int) -> int:
        """Return the length of text `index`, in tokens."""
        _, start, end, _ = self.places_N4[index].tolist()
        return int(end - start)

    def split(self, heldout_fraction: float | None = None) -> Data:
        """Split into texts to train on and texts held out; see the module's docstring.

        Args:
            heldout_fraction: by default the recorded one.

        Raises:
            ConfigError: for a fraction outside [0, 1), or if none is recorded and none is given.
        """
        fraction = self.heldout_fraction if heldout_fraction is None else heldout_fraction
        if fraction is None or not 0 <= fraction < 1:
            raise ConfigError(f"heldout_fraction={fraction} must be at least 0 and below 1")
        # by hash: a prompt stays on its side when the data set grows or others join it
        held_out_N = self.places_N4[:, 3] < int(fraction * 2**HASH_BITS)
        return Data(
            train=replace(self, places_N4=self.places_N4[~held_out_N]),
            held_out=replace(self, places_N4=self.places_N4[held_out_N]),
        )


def _header_of(path: Path, wanted: str) -> dict[str, Any]:
    header = read_header(path)
    if header["target_fingerprint"] != wanted:
        raise RunError(
            f"{path} was written by a target with fingerprint {header['target_fingerprint']}, not {wanted}; "
            "keep each target's texts in a directory of their own"
        )
    return header


def _places(shard: int, path: Path, max_tokens: int | None) -> Tensor:
    """Return `Dataset.places_N4`."""
    tensors = _fitting(path)
    offsets, hashes, learn = tensors["offsets"], tensors["prompt_hashes"], tensors["learn"]
    start, end = offsets[:-1], offsets[1:]
    places_N4 = torch.stack([torch.full_like(start, shard), start, end, hashes], dim=1)
    if max_tokens is None:
        return places_N4
    places_N4[:, 2] = torch.minimum(end, start + max_tokens)
    # a text is kept if a learnt token is left in front of the cut
    learnt_before = torch.cat([torch.zeros(1, dtype=torch.int64), learn.cumsum(0)])
    return places_N4[learnt_before[places_N4[:, 2]] > learnt_before[start]]


def _check_target(found: Mapping[str, Any], wanted: Mapping[str, Any], root: Path) -> None:
    if found["fingerprint"] != wanted["fingerprint"]:
        raise RunError(
            f"{root} was written by {found['name']} ({found['fingerprint']}), not by {wanted['name']} "
            f"({wanted['fingerprint']}); synthesize texts with the target that is trained for"
        )
