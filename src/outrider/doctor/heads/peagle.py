"""Suspects of a P-EAGLE head: those of an EAGLE-3 head, whose tensors it has.

Example: a head with `mask_hidden` beside the tensors of `eagle3.py` is one of these.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from outrider.doctor.heads.eagle3 import feature_layers, stored_findings, variants
from outrider.models.eagle3 import MASK

__all__ = ["RECURRENT", "feature_layers", "reads", "stored_findings", "variants"]

RECURRENT: Final = False


def reads(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a checkpoint looks like one of these heads."""
    return any(name.endswith(MASK) for name in names)
