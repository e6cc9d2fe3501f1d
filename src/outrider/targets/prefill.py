"""Prefill: reading prompts into a cache in chunks, many slots at once.

A chunk has a fixed number of rows (more on a GPU, to amortise kernel launches), shared by the prompts with tokens left,
so its memory is bounded for prompts of any length. Prompts of different lengths are padded to the chunk's width;
padding rows write to the trash position.

    256 rows, prompts of 100 and 300 tokens     chunk 1: 2 x 128 (28 rows of padding)     chunk 2: 1 x 172

Shapes: B slots of the chunk, M rows of each, T tokens of one prompt, F features.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.placement import Placement, place_chunk

__all__ = ["prefill_rows", "read_prompts"]

ROWS = {"cpu": 256, "cuda": 8192}

Reader = Callable[[Tensor, Placement], Tensor | None]


def prefill_rows(device: torch.device) -> int:
    """Return the number of rows of a chunk."""
    return ROWS.get(device.type, ROWS["cpu"])


def read_prompts(
    cache: KVCache,
    slots: Sequence[int],
    prompts: Sequence[Sequence[int]],
    read: Reader,
    feature: Tensor | None = None,
) -> list[Tensor | None]:
    """Read `prompts[b]` behind what slot `slots[b]` holds, and keep it.

    Args:
        read: the model on one chunk: maps tokens [B, M] and their placement to features [B, M, F], or None without
            feature layers.
        feature: any tensor [F] with the dtype of the features; None without feature layers.

    Returns:
        Features [T, F] of each prompt, or None without feature layers.
    """
    features: dict[int, Tensor] = {}
    if feature is not None:
        lengths = map(len, prompts)
        features = {slot: feature.new_empty(length, len(feature)) for slot, length in zip(slots, lengths, strict=True)}
    at = dict.fromkeys(slots, 0)
    while rest := [(slot, prompt) for slot, prompt in zip(slots, prompts, strict=True) if at[slot] < len(prompt)]:
        # fewer prompts left, longer chunks: the number of rows is constant; padding must not leave the longest slot
        free = cache.trash - max(cache.lengths[slot] for slot, _ in rest)
        width = min(max(1, prefill_rows(cache.device) // len(rest)), free)
        heads = {slot: list(prompt[at[slot] : at[slot] + width]) for slot, prompt in rest}
        features_BMF = _read_chunk(cache, heads, read)
        at |= {slot: at[slot] + len(head) for slot, head in heads.items()}
        if features_BMF is not None:
            for (slot, head), features_MF in zip(heads.items(), features_BMF, strict=True):
                end = at[slot]
                features[slot][end - len(head) : end] = features_MF[: len(head)]
    return [features.get(slot) for slot in slots]


def _read_chunk(cache: KVCache, heads: dict[int, list[int]], read: Reader) -> Tensor | None:
    slots, counts = list(heads), [len(head) for head in heads.values()]
    rows = [head + [0] * (max(counts) - len(head)) for head in heads.values()]
    features_BMF = read(torch.tensor(rows, device=cache.device), place_chunk(cache, slots, counts))
    cache.extend(slots, counts)
    return features_BMF
