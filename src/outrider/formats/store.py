"""Writing checkpoints, and binding them to their target.

A checkpoint is a directory with `config.json` and one safetensors file. Equal content gives equal bytes: tensors are
sorted by name, the config by key. Files are written atomically.

Every checkpoint written here has a key `outrider` in its config with its target's name and a fingerprint of the
target's embedding: a SHA-256 of the signs of every 97th row (of small embeddings, more rows). Rounding keeps signs, so
the fingerprint does not depend on the dtype in which weights are stored or loaded; of weights that were quantised while
loading, it is the source's. Older checkpoints have a hash of the
loaded values, which is still recognised. Foreign checkpoints have no such key and are checked by shape.

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
from outrider.models.weight_kinds import MADE_KINDS
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
    """Return the hash of a target's embedding, independent of its dtype and of quantising while loading."""
    return fingerprint_of(_embedding(target))


def fingerprint_of(embedding_VE: Tensor) -> str:
    """Return the fingerprint of an embedding, without loading the rest of the target."""
    signs_RE = torch.signbit(embedding_VE[:: max(1, min(STRIDE, len(embedding_VE) // LEAST_ROWS))]).cpu()
    return _hash(np.packbits(signs_RE.numpy(), axis=-1).tobytes())


def fingerprints(target: Target) -> tuple[str, ...]:
    """Return every fingerprint of a target: the current one, and older ones of its values."""
    embedding_VE = _embedding(target)
    rows = embedding_VE[::STRIDE].cpu()
    held = (rows, rows.to(torch.bfloat16))  # most older checkpoints were made with a target in bf16
    return fingerprint_of(embedding_VE), *(_hash(some.float().contiguous().numpy().tobytes()) for some in held)


def _embedding(target: Target) -> Tensor:
    """Return the embedding as the target's files hold it."""
    spec = target.spec
    if spec.source is not None and {*spec.weights.split(", ")} <= MADE_KINDS.keys():
        from outrider.formats.weights import EMBEDDING, read_weights  # vLLM's process does without it

        return read_weights(Path(spec.source))[EMBEDDING].to(spec.dtype)  # small numbers became 0, which has no sign
    return target.shared_weights().embedding_VE


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def belongs_to(config: Mapping[str, Any], target: Target) -> bool:
    """Return whether a checkpoint's config says that it was trained for this target."""
    known = config.get("outrider")
    return isinstance(known, Mapping) and known.get("target_fingerprint") in fingerprints(target)


def provenance(target: Target, **facts: Any) -> dict[str, Any]:
    """Return the `outrider` key of a config: the target and further facts (settings, data, commit)."""
    return {"target": target.spec.name, "target_fingerprint": fingerprint(target), **facts}


def check_target(config: Mapping[str, Any], target: Target, where: Path) -> None:
    """Refuse a checkpoint whose config names another target.

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
