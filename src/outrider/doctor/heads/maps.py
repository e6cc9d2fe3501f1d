"""The tokens of an output head's columns, recovered from the weights.

Most heads start from the target's own output head, and training moves a row by little. So the row of the target that is
most similar to a column says which token the column stands for, whatever the checkpoint's map says.

Example: of the head that is shipped for SmolLM2, nearly all columns are most similar to the row of their own token.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from outrider.doctor.variant import Tensors, Variant
from outrider.formats.weights import Weights
from outrider.target import Target

__all__ = ["TRUSTED", "agreement", "are_tokens", "offset_maps", "recovered_map"]

LEAST_SIMILAR: Final = 0.3
TRUSTED: Final = 0.5
"""Share of columns that resemble their own token, from which on the map needs no recovery."""
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


def offset_maps(weights: Weights, names: Mapping[str, str], target: Target) -> Iterator[Variant]:
    """Yield other readings of a vocabulary map in `d2t` and `t2d`; each is written as offsets, and `t2d` to match.

    Args:
        names: stored name of each tensor by its published one.
    """
    if "d2t" not in names or "lm_head.weight" not in names:
        return
    vocab_size = target.spec.vocab_size
    d2t_K = weights.integers(names["d2t"])
    plain_K = torch.arange(len(d2t_K))
    readings: dict[str, tuple[str, Tensor | None]] = {
        "offsets": ("token = column + d2t[column]", plain_K + d2t_K),
        "token ids": ("token = d2t[column]", d2t_K),
    }
    if "t2d" in names:
        marked = weights.integers(names["t2d"]).bool().nonzero().flatten()
        readings["the tokens that t2d marks"] = ("in rising order", marked)
    if weights.shape(names["lm_head.weight"])[1] == target.spec.hidden_size:
        head_KE, head_VE = weights[names["lm_head.weight"]], target.shared_weights().head_VE
        if max(agreement(head_KE, ids_K, head_VE) for _, ids_K in readings.values() if ids_K is not None) < TRUSTED:
            recovered = recovered_map(head_KE, head_VE)  # takes seconds for a large vocabulary
            readings["the most similar rows of the target's output head"] = ("one for each column", recovered)
    for name, (how, ids_K) in readings.items():
        if ids_K is None or len(ids_K) != len(d2t_K) or not are_tokens(ids_K, vocab_size):
            continue
        yield Variant(
            check="vocabulary map",
            now="the columns' tokens are as d2t and t2d are read",
            instead=f"{name}, {how}",
            remedy=f"write d2t as offsets, token id = column + d2t[column], of {name}, {how}",
            tensors=_with_offsets(names, ids_K - plain_K, ids_K, vocab_size),
        )


def are_tokens(ids_K: Tensor, vocab_size: int) -> bool:
    """Return whether these are tokens, each once."""
    return bool(((ids_K >= 0) & (ids_K < vocab_size)).all()) and len(torch.unique(ids_K)) == len(ids_K)


def _with_offsets(
    names: Mapping[str, str], offsets_K: Tensor, ids_K: Tensor, vocab_size: int
) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        has_column_V = torch.zeros(vocab_size, dtype=torch.bool)
        has_column_V[ids_K] = True
        tensors[names["d2t"]] = offsets_K
        tensors[names.get("t2d", "t2d")] = has_column_V

    return change
