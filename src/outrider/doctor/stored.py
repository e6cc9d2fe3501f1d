"""Findings from the stored tensors alone: numbers that are not finite, tensors of zeros, dtypes that lose too much.

Example: a head that was trained in bf16 and stored in fp16 may have infinite values; such a file does not load either.
"""

from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from outrider.doctor.finding import Finding
from outrider.doctor.variant import each_tensor
from outrider.errors import CheckpointError, on_one_line

__all__ = ["tensor_findings"]

LARGEST: Final = 1e4
"""Largest magnitude that a trained weight of a drafter has; beyond it a scale was lost or applied twice."""


def tensor_findings(directory: Path) -> list[Finding]:
    """Return findings on the values of every tensor."""
    try:
        found = {name: _facts(tensor) for name, tensor in each_tensor(directory) if tensor.is_floating_point()}
    except CheckpointError as error:
        return [Finding("weights", "problem", on_one_line(str(error), 300), "download the checkpoint again")]
    if bad := [name for name, one in found.items() if one.num_broken]:
        evidence = f"{bad[0]} has {found[bad[0]].num_broken} values that are not finite" + _more(bad)
        return [Finding("weights", "problem", evidence, "export the checkpoint again in bf16 or fp32, not in fp16")]
    if zeros := [name for name, one in found.items() if one.largest == 0 and not name.endswith(".bias")]:
        evidence = f"{zeros[0]} holds zeros alone{_more(zeros)}"
        return [Finding("weights", "problem", evidence, "export the checkpoint again: this tensor was never filled")]
    if huge := [name for name, one in found.items() if one.largest > LARGEST]:
        evidence = f"{huge[0]} reaches {found[huge[0]].largest:.3g}{_more(huge)}"
        return [Finding("weights", "problem", evidence, "export the checkpoint again: a scale was applied twice")]
    counts = Counter(one.dtype for one in found.values())
    evidence = ", ".join(f"{count} tensors in {dtype}" for dtype, count in counts.most_common())
    return [Finding("weights", "ok", f"{evidence}, all finite")]


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more tensors so" if len(names) > 1 else ""


class _Facts(NamedTuple):
    """Facts about one tensor: its dtype, values that are not finite, and the largest magnitude of the others."""

    dtype: str
    num_broken: int
    largest: float


def _facts(tensor: Tensor) -> _Facts:
    finite = tensor[torch.isfinite(tensor)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return _Facts(str(tensor.dtype).removeprefix("torch."), tensor.numel() - finite.numel(), largest)
