"""Writing checkpoints, and telling whether one belongs to a target.

A checkpoint is a directory with `config.json` and one safetensors file. Equal content gives equal bytes: tensors are
stored sorted by name, the config with sorted keys. Files appear whole or not at all.

Every checkpoint written here carries a key `outrider` in its config: which target it was trained for, by name and by a
fingerprint of the target's embedding. That is a SHA-256 of signs, over every 97th row (of few rows, more of them):
rounding keeps a number's sign, so the fingerprint is the same in whatever dtype the weights are stored or loaded. Older
checkpoints carry a hash of the values as they were loaded; it is still known. Foreign checkpoints have no such key and
are checked by shape.

Example: `check_target(config, target, directory)` raises for a head trained on SmolLM2 that is given to Qwen2.5.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outrider.errors import CheckpointError, on_one_line
from outrider.records.files import replacing, save_tensors
from outrider.target import Target

__all__ = [
    "TRAINING",
    "WEIGHTS",
    "belongs_to",
    "check_target",
    "fingerprint",
    "fingerprint_of",
    "fingerprints",
    "provenance",
    "write_checkpoint",
]

TRAINING, WEIGHTS = "training.json", "model.safetensors"
STRIDE, LEAST_ROWS = 97, 64


def write_checkpoint(
    directory: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: str = WEIGHTS
) -> None:
    """Write weights, then `config.json`, into an existing directory, each file atomically.

    Raises:
        OSError: if the disk is full or the place cannot be written.
    """
    with replacing(directory / file) as part:
        save_tensors(part, tensors)
    with replacing(directory / "config.json") as part:
        part.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def fingerprint(target: Target) -> str:
    """Return what a target's embedding hashes to, whatever dtype it is stored or loaded in."""
    return fingerprint_of(target.shared_weights().embedding_VE)


def fingerprint_of(embedding_VE: Tensor) -> str:
    """Return the same from the embedding alone, where the rest of the target is not loaded."""
    signs_RE = torch.signbit(embedding_VE[:: max(1, min(STRIDE, len(embedding_VE) // LEAST_ROWS))]).cpu()
    return _hash(np.packbits(signs_RE.numpy(), axis=-1).tobytes())


def fingerprints(target: Target) -> tuple[str, ...]:
    """Return every fingerprint that a target is known by: today's, and the older ones of its values."""
    embedding_VE = target.shared_weights().embedding_VE
    rows = embedding_VE[::STRIDE].cpu()
    held = (rows, rows.to(torch.bfloat16))  # most older checkpoints were made with a target in bf16
    return fingerprint_of(embedding_VE), *(_hash(some.float().contiguous().numpy().tobytes()) for some in held)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def belongs_to(config: Mapping[str, Any], target: Target) -> bool:
    """Return whether a checkpoint's config says that it was trained for this target."""
    known = config.get("outrider")
    return isinstance(known, Mapping) and known.get("target_fingerprint") in fingerprints(target)


def provenance(target: Target, **facts: Any) -> dict[str, Any]:
    """The `outrider` key of a config: the target, and whatever else is worth keeping (settings, data, commit)."""
    return {"target": target.spec.name, "target_fingerprint": fingerprint(target), **facts}


def check_target(config: Mapping[str, Any], target: Target, where: Path) -> None:
    """Refuse a checkpoint that says it was trained for another target.

    Raises:
        CheckpointError: naming both targets.
    """
    known = config.get("outrider")
    if not isinstance(known, Mapping) or "target_fingerprint" not in known:
        return
    if not belongs_to(config, target):
        name = on_one_line(str(known.get("target")))
        raise CheckpointError(
            f"{where} was trained for {name}, whose embedding differs from that of {target.spec.name}; "
            "load it with its own target, or train one for this target"
        )
