"""Findings from the stored tensors alone: numbers that are not finite, tensors of zeros, dtypes that lose too much.

Example: a head that was trained in bf16 and stored in fp16 may have infinite values; such a file does not load either.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from outrider.doctor.finding import Finding
from outrider.doctor.variant import stored_tensors
from outrider.errors import CheckpointError, on_one_line

__all__ = ["tensor_findings"]

LARGEST: Final = 1e4
"""Largest magnitude that a trained weight of a drafter has; beyond it a scale was lost or applied twice."""


def tensor_findings(directory: Path) -> list[Finding]:
    """Return findings on the values of every tensor."""
    try:
        tensors = stored_tensors(directory)
    except CheckpointError as error:
        return [Finding("weights", "problem", on_one_line(str(error), 300), "download the checkpoint again")]
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    broken = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in numbers.items()}
    if bad := [name for name, count in broken.items() if count]:
        evidence = f"{bad[0]} has {broken[bad[0]]} values that are not finite" + _more(bad)
        return [Finding("weights", "problem", evidence, "export the checkpoint again in bf16 or fp32, not in fp16")]
    zeros = [name for name, tensor in numbers.items() if not bool(tensor.any()) and not name.endswith(".bias")]
    if zeros:
        evidence = f"{zeros[0]} holds zeros alone{_more(zeros)}"
        return [Finding("weights", "problem", evidence, "export the checkpoint again: this tensor was never filled")]
    huge = [name for name, tensor in numbers.items() if float(tensor.abs().max()) > LARGEST]
    if huge:
        evidence = f"{huge[0]} reaches {float(numbers[huge[0]].abs().max()):.3g}{_more(huge)}"
        return [Finding("weights", "problem", evidence, "export the checkpoint again: a scale was applied twice")]
    return [Finding("weights", "ok", _dtypes(numbers))]


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more tensors so" if len(names) > 1 else ""


def _dtypes(numbers: Mapping[str, Tensor]) -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in numbers.values())
    return ", ".join(f"{count} tensors in {dtype}" for dtype, count in counts.most_common()) + ", all finite"
