"""A variant of a checkpoint: the same weights read in another way, or rearranged, in a directory of their own.

Variants are applied one after another; each is a change of `config.json`, of the tensors, or of the files beside them.
A directory of a variant links to the files that do not change, so that trying one costs no copy of the weights.

Example: `Variant("rope", "base 10000", "base 500000", "set rope_theta to 500000", config=...)`.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EEXIST
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from torch import Tensor

from outrider.errors import CheckpointError, as_error
from outrider.formats.locate import CONFIG
from outrider.formats.store import WEIGHTS
from outrider.formats.weights import read_weights
from outrider.records.files import replacing_directory, save_tensors
from outrider.records.json_fields import read_json

__all__ = ["Config", "Tensors", "Variant", "each_tensor", "is_large", "stored_tensors", "write_variant"]

Config = dict[str, Any]
Tensors = dict[str, Tensor]
INDEX: Final = ".index.json"
MOST_BYTES: Final = 4_000_000_000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing read or arranged differently.

    check        name of its subject; of the variants of one check the best counts
    now          present reading of the checkpoint
    instead      reading of it as a variant
    remedy       change to make
    is_expected  True if the target or the file itself suggests this variant, so that weaker evidence is enough
    config       function that changes the config in place
    tensors      function that changes the tensors in place
    without      files of the checkpoint that are left out
    """

    check: str
    now: str
    instead: str
    remedy: str
    is_expected: bool = False
    config: Callable[[Config], None] | None = None
    tensors: Callable[[Tensors], None] | None = None
    without: Sequence[str] = field(default=())


def write_variant(source: Path, variants: Sequence[Variant], directory: Path, *, links: bool = True) -> None:
    """Write a checkpoint with these changes, in order, as `directory`, which appears when it is complete.

    Args:
        links: link to files that do not change, instead of copying them, and flush nothing to disk.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        OSError: if the place cannot be written.
    """
    config: Config = copy.deepcopy(read_json(source / CONFIG).plain())
    changes = [one.tensors for one in variants if one.tensors is not None]
    with replacing_directory(directory) if not links else _filled(directory) as part:
        left_out = {CONFIG, *(name for one in variants for name in one.without)}
        if changes:
            tensors = stored_tensors(source)
            for change in changes:
                change(tensors)
            save_tensors(part / WEIGHTS, tensors)
        for file in sorted(source.iterdir()):
            is_weights = file.suffix == ".safetensors" or file.name.endswith(INDEX)
            if file.name in left_out or not file.is_file() or (changes and is_weights):
                continue
            if links:
                (part / file.name).symlink_to(file.resolve())
            else:
                shutil.copyfile(file, part / file.name)
        for one in variants:
            if one.config is not None:
                one.config(config)
        (part / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if not links and directory.exists():
            raise FileExistsError(EEXIST, "it appeared meanwhile, and nothing is overwritten")


@contextmanager
def _filled(directory: Path) -> Iterator[Path]:
    """Yield a new directory for a trial, which need not outlive a power cut."""
    directory.mkdir()
    yield directory


def is_large(source: Path) -> bool:
    """Return whether the weights of a checkpoint are too large to be copied for a trial."""
    return sum(file.stat().st_size for file in source.glob("*.safetensors")) > MOST_BYTES


def stored_tensors(source: Path) -> Tensors:
    """Read every tensor in its stored dtype, finite or not.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    return dict(each_tensor(source))


def each_tensor(source: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the values of one tensor after another, in its stored dtype.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    for file in sorted({one.file for one in read_weights(source).stored.values()}):
        with as_error(CheckpointError, f"{file} cannot be read", "download it again"), _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name).clone()


def _opened(file: Path) -> Any:
    return safe_open(file, framework="pt")
