"""Flags that run an Outrider method inside vLLM's process, as its `custom_class`; see `custom_class.py`."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from outrider.env import PACKAGE
from outrider.export.exported import Exported
from outrider.proposers import proposer_class
from outrider.target import TargetSpec
from outrider.vllm.custom_class import KEY, OutriderDrafter, custom_drafter

__all__ = ["METHOD", "import_path", "on_custom_class"]

METHOD: Final = "custom_class"
"""vLLM's name of the method."""
FILES: Final = frozenset({"corpus"})
"""Settings that name files."""
MEMORY: Final = "max_cached_requests"
"""The setting of methods that keep earlier answers."""


def on_custom_class(method: str, settings: Mapping[str, Any], spec: TargetSpec) -> Exported:
    """Return the speculative configuration and the flag with the method's settings.

    Example: prompt lookup becomes `{"method": ..., "model": "outrider.vllm.custom_class.OutriderDrafter",
    "num_speculative_tokens": 8}` and `--additional-config '{"outrider": {"method": ..., "settings": {...}}}'`.

    Raises:
        ConfigError: for a method that needs more than token ids.
    """
    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    for name in FILES & given.keys():
        given[name] = str(Path(given[name]).absolute())  # a server runs in a directory of its own
    notes = []
    # answers of earlier benchmark runs must not help later ones
    if MEMORY in {one.name for one in fields(proposer_class(method).Config)}:
        given[MEMORY] = 0
        notes.append("it drafts from the request's own text only: a server cannot clear its cache of earlier answers")
    proposer = custom_drafter(method, given, spec)
    return Exported(
        speculative={
            "method": METHOD,
            "model": f"{OutriderDrafter.__module__}.{OutriderDrafter.__name__}",
            "num_speculative_tokens": proposer.spec.max_nodes,
        },
        flags={"additional-config": json.dumps({KEY: {"method": method, "settings": given}})},
        notes=tuple(notes),
    )


def import_path(directory: Path) -> Path:
    """Return a directory for another environment's `PYTHONPATH` that holds a link to this package alone."""
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / "outrider"
    if not link.is_symlink():
        link.symlink_to(PACKAGE.resolve())
    return directory.resolve()
