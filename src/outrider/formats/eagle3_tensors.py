"""Names, sizes and the vocabulary map of an EAGLE-3 head, from its tensors alone.

Publishers spell the same tensors differently. `canonical_names` maps each to its published name:

    model.layers.0.self_attn.q_proj.weight      midlayer.self_attn.q_proj.weight
    layers.1.hidden_norm.weight                 layers.1.input_layernorm.weight: only the first layer has both norms
    aux_norm_low.weight                         fc_norm.0.weight
    verifier_lm_head.weight, *.inv_freq         left out: unused

A config is often a copy of the target's (40 layers for a head of one), or names a size that was changed later. So
shapes determine every size they can, and the config only the rest.

`d2t` holds offsets (token = column + d2t[column]); some files hold token ids instead, and some a buffer of zeros.
`t2d`, which marks the tokens that have a column, decides; without it offsets are tried first.

Worked example: d2t = [0, 4, 4] gives the tokens 0, 5, 6; d2t = [0, 5, 6] beside a t2d of those three, the same.

Shapes: E hidden size, F input width of the fusion, K columns, V vocabulary.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.formats.weights import Weights
from outrider.models.eagle3 import LAYER

__all__ = ["Shapes", "canonical_names", "column_ids", "layer_sizes", "num_layers"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor by its published name."""

PREFIXES: Final = ("module.", "draft_model.", "eagle_module.", "model.")
LAYERS: Final = ("layers.0.", "decoder.layers.0.", "midlayer.")
FURTHER: Final = re.compile(r"(?:decoder\.)?layers\.([1-9]\d{0,3})\.(.*)")
OLD_NORMS: Final = {
    f"aux_norm_{name}.weight": f"fc_norm.{feature_layer}.weight"
    for feature_layer, name in enumerate(("low", "mid", "high"))
}
UNUSED: Final = ("verifier_lm_head.", "verifier_norm.")


def canonical_names(weights: Weights, directory: Path) -> dict[str, str]:
    """Return the stored name of each tensor by its published name.

    Raises:
        CheckpointError: for two tensors of one meaning.
    """
    found: dict[str, str] = {}
    for stored in weights.stored:
        name = _canonical(stored)
        if name.startswith(UNUSED) or name.endswith("rotary_emb.inv_freq"):
            continue
        if name in found:
            raise CheckpointError(f"{directory} holds {found[name]} and {stored}, which are one tensor; drop one")
        found[name] = stored
    return found


def _canonical(name: str) -> str:
    # prefixes nest, as in module.draft_model.
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    if further := FURTHER.fullmatch(name):
        rest = "input_layernorm.weight" if further[2] == "hidden_norm.weight" else further[2]
        return f"layers.{further[1]}.{rest}"
    layer = next((layer for layer in LAYERS if name.startswith(layer)), None)
    return OLD_NORMS.get(name, name) if layer is None else LAYER + name.removeprefix(layer)


def num_layers(names: Iterable[str]) -> int:
    """Return the number of decoder layers by published names: one more than the last layer's number."""
    return 1 + max((int(further[1]) for name in names if (further := FURTHER.fullmatch(name))), default=0)


def layer_sizes(shapes: Shapes, num_heads: int) -> dict[str, int]:
    """Return the sizes that the layer's shapes determine, by config key; skip shapes that contradict each other.

    Args:
        num_heads: number of heads in the config, which gives a head's size.
    """

    def rows(name: str) -> int | None:
        shape = shapes.get(name, ())
        return shape[0] if len(shape) > 0 and shape[0] > 0 else None

    queries, keys = rows(f"{LAYER}self_attn.q_proj.weight"), rows(f"{LAYER}self_attn.k_proj.weight")
    sizes = {
        "hidden_size": rows("norm.weight"),
        "intermediate_size": rows(f"{LAYER}mlp.gate_proj.weight"),
        "head_dim": queries // num_heads if queries is not None and queries % num_heads == 0 else None,
    }
    head_dim = sizes["head_dim"]
    if keys is not None and head_dim is not None and keys % head_dim == 0:
        sizes["num_key_value_heads"] = keys // head_dim
    return {key: size for key, size in sizes.items() if size is not None}


def column_ids(d2t_K: Tensor | None, t2d_V: Tensor | None, num_columns: int, vocab_size: int, place: str) -> Tensor:
    """Return the token of each column, int64 [K].

    Raises:
        CheckpointError: if the maps are neither offsets nor ids, or contradict each other.
    """
    plain_K = torch.arange(num_columns)
    if d2t_K is None and num_columns == vocab_size:
        return plain_K
    marked = None if t2d_V is None or not bool(t2d_V.any()) else t2d_V.bool().nonzero().flatten()
    assert d2t_K is not None, "a head with fewer columns has the map"
    # a buffer of zeros would be a map of the first K tokens; the marks are the trained ones
    if marked is not None and len(marked) == num_columns and not bool(d2t_K.any()):
        return marked
    readings = [
        ids_K for ids_K in (plain_K + d2t_K.to(torch.int64), d2t_K.to(torch.int64)) if _are_ids(ids_K, vocab_size)
    ]
    if not readings:
        raise CheckpointError(_why(plain_K + d2t_K.to(torch.int64), vocab_size, place))
    if marked is None:
        return readings[0]
    fitting = [ids_K for ids_K in readings if torch.equal(ids_K.sort().values, marked)]
    if not fitting:
        raise CheckpointError(f"t2d of {place} marks other tokens than d2t; one of both is of another head")
    return fitting[0]


def _are_ids(ids_K: Tensor, vocab_size: int) -> bool:
    in_range = bool(((ids_K >= 0) & (ids_K < vocab_size)).all())
    return in_range and len(set(ids_K.tolist())) == len(ids_K)


def _why(ids_K: Tensor, vocab_size: int, place: str) -> str:
    low, high = int(ids_K.min()), int(ids_K.max())
    if low < 0 or high >= vocab_size:
        return (
            f"d2t of {place} points to token {high if high >= vocab_size else low}, outside the vocabulary of "
            f"{vocab_size}; it must hold offsets, token id = column + d2t[column], or token ids"
        )
    return f"d2t of {place} gives two columns the same token; it must hold offsets, or token ids"
