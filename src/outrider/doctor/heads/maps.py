"""The tokens of an output head's columns, recovered from the weights.

Most heads start from the target's own output head, and training moves a row by little. So the row of the target that is
most similar to a column says which token the column stands for, whatever the checkpoint's map says.

Example: of the head that is shipped for SmolLM2, nearly all columns are most similar to the row of their own token.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["agreement", "recovered_map"]

LEAST_SIMILAR: Final = 0.3
ROWS: Final = 2048
SAMPLE: Final = 256


def agreement(head_KE: Tensor, ids_K: Tensor, target_VE: Tensor) -> float:
    """Return the share of some columns that are most similar to the target's row of their own token."""
    step = max(1, len(ids_K) // SAMPLE)
    wide_VE = normalize(target_VE.to(torch.float32).cpu(), dim=-1)
    best_R = (normalize(head_KE[::step].to(torch.float32).cpu(), dim=-1) @ wide_VE.T).argmax(-1)
    return float((best_R == ids_K[::step]).float().mean())


def recovered_map(head_KE: Tensor, target_VE: Tensor) -> Tensor | None:
    """Return the token of each column, int64 [K]; None if most columns resemble no row, or two the same."""
    wide_VE = normalize(target_VE.to(torch.float32).cpu(), dim=-1)
    best = [
        (normalize(rows_RE.to(torch.float32), dim=-1) @ wide_VE.T).max(-1)
        for rows_RE in torch.split(head_KE.cpu(), ROWS)
    ]
    values_K, ids_K = torch.cat([one.values for one in best]), torch.cat([one.indices for one in best])
    if float(values_K.median()) < LEAST_SIMILAR:
        return None
    taken = torch.unique(ids_K)
    if len(taken) == len(ids_K):
        return ids_K
    return _distinct(values_K, ids_K, len(target_VE)) if len(taken) > 0.9 * len(ids_K) else None


def _distinct(values_K: Tensor, ids_K: Tensor, vocab_size: int) -> Tensor:
    """Let the more similar column keep a token; the others get tokens that no column has."""
    order = values_K.argsort(descending=True).tolist()
    free = iter(sorted({*range(vocab_size)} - {*ids_K.tolist()}))
    used: set[int] = set()
    result = ids_K.clone()
    for column in order:
        token = int(ids_K[column])
        if token in used:
            token = next(free)
            result[column] = token
        used.add(token)
    return result
