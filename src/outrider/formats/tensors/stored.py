"""Tensors as a file's header describes them, and matrices of experts within one.

Llama 4 stores the experts of a layer as two tensors, whose matrices are transposed: gate and up [N, F, 2 I], and down
[N, I, F]. Each expert's matrices are entries of their own here, under the names that other mixtures use, and only their
bytes are read. Files that are written have two tensors again (`fused_names`, `fuse`).

Example: `layers.0.feed_forward.experts.gate_up_proj` of 16 experts gives 32 entries, such as
`layers.0.feed_forward.experts.7.up_proj.weight`.

Shapes: N experts, F features, I inner features of an expert.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

__all__ = ["EVERY", "MOST_EXPERTS", "StoredTensor", "fuse", "fused_names", "read_slice", "split_experts"]

EVERY: Final = slice(None)
MOST_EXPERTS: Final = 2**16
"""An empty tensor may claim any number of them."""
FUSED: Final = {
    ".feed_forward.experts.gate_up_proj": ("gate_proj", "up_proj"),
    ".feed_forward.experts.down_proj": ("down_proj",),
}
EXPERT: Final = re.compile(r"(.*\.feed_forward\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


class ExpertPlace(NamedTuple):
    """The matrix of an expert in a tensor [N, inputs, outputs]: those outputs from `start` on, transposed."""

    expert: int
    start: int


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A header's entry of one tensor. `dtype` is the safetensors name, such as BF16.

    place   its place within the tensor `name`; None if it is that tensor
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    place: ExpertPlace | None = None


def split_experts(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors with an entry for each matrix of each expert in the place of fused ones."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        end = next((end for end in FUSED if name.endswith(end) and len(tensor.shape) == 3), None)
        found |= {name: tensor} if end is None else dict(_experts(name, tensor, FUSED[end]))
    return found


def _experts(name: str, tensor: StoredTensor, parts: tuple[str, ...]) -> Iterator[tuple[str, StoredTensor]]:
    num_experts, inputs, outputs = tensor.shape
    if outputs % len(parts) or num_experts > MOST_EXPERTS:
        yield name, tensor  # refused as a tensor that no model has
        return
    size = outputs // len(parts)
    prefix = name.rpartition(".")[0]
    for expert in range(num_experts):
        for number, part in enumerate(parts):
            place = ExpertPlace(expert, number * size)
            yield f"{prefix}.{expert}.{part}.weight", replace(tensor, shape=(size, inputs), place=place)


def read_slice(file: Any, stored: StoredTensor, rows: slice = EVERY, columns: slice = EVERY) -> Tensor:
    """Read some rows and columns of a tensor with one or two axes from its opened file."""
    lazy = file.get_slice(stored.name)
    if stored.place is not None:
        expert, start = stored.place
        first, last, _ = rows.indices(stored.shape[0])
        read: Tensor = lazy[expert : expert + 1, columns, start + first : start + last]
        return read[0].T.contiguous()
    whole: Tensor = lazy[rows] if len(stored.shape) == 1 or columns == EVERY else lazy[rows, columns]
    return whole


def fused_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the tensors of a file that holds these, and the entries that each of them joins, in order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = EXPERT.fullmatch(name)
        part = "" if found is None else "down_proj" if found[3] == "down" else "gate_up_proj"
        groups.setdefault(name if found is None else f"{found[1]}.{part}", []).append(name)
    return {name: sorted(members, key=_place) for name, members in groups.items()}


def _place(name: str) -> tuple[int, str]:
    found = EXPERT.fullmatch(name)
    return (0, name) if found is None else (int(found[2]), found[3])  # gate comes before up


def fuse(name: str, members: Sequence[Tensor]) -> Tensor:
    """Return the tensor `name` of a file, from the entries that it joins."""
    parts = next((parts for end, parts in FUSED.items() if name.endswith(end)), None)
    if parts is None:
        return members[0]
    turned = [member.T for member in members]
    step = len(parts)
    return torch.stack([torch.cat(turned[at : at + step], dim=1) for at in range(0, len(turned), step)])
