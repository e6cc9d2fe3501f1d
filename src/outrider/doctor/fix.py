"""A corrected copy of a checkpoint, beside the old one; nothing is overwritten.

Example: `heads/mine` gets `heads/mine-fixed`, with another config.json and the same weights.
"""

from collections.abc import Sequence
from pathlib import Path

from outrider.doctor.config import DoctorConfig
from outrider.doctor.variant import Variant, write_variant
from outrider.errors import RunError
from outrider.records.files import writing

__all__ = ["fixed_place", "write_fixed"]


def fixed_place(directory: Path, config: DoctorConfig) -> Path:
    """Return the directory of the copy: beside a directory of the user, else in the working directory.

    Raises:
        RunError: if it exists.
    """
    given = Path(config.drafter.rpartition("checkpoint=")[2].partition(",")[0]).expanduser()
    beside = directory.parent if given.is_dir() else Path.cwd()
    place = (config.output or beside / f"{directory.name}-fixed").expanduser().absolute()
    if place.exists():
        raise RunError(f"{place} exists, and nothing is overwritten; give another --output")
    return place


def write_fixed(directory: Path, variants: Sequence[Variant], config: DoctorConfig) -> Path:
    """Write the checkpoint with these changes.

    Raises:
        RunError: if the place exists or cannot be written.
    """
    place = fixed_place(directory, config)
    with writing(place, "free some space, or give another --output"):
        write_variant(directory, variants, place, links=False)
    return place
