"""Differences between a GGUF file of Phi-3 or Phi-4 and its Hugging Face checkpoint.

Divisors of LongRoPE are tensors, and the factor of cos and sin is a key; `rope.dimension_count` tells how much of a
head rotates. A window of 0 means none. Queries, keys and values are one matrix, gate and up another, named `ffn_up`.

Example: of Phi-4-mini, 96 of 128 numbers of a head rotate, so each table of divisors has 48.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from outrider.errors import CheckpointError
from outrider.formats.gguf.file import ORIGINAL, GgufFile
from outrider.records.display import shown_json

__all__ = ["DIVISORS", "LAYER_NAMES", "OWN_KEYS", "PHI3", "phi3_keys"]

PHI3: Final = "phi3"
OWN_KEYS: Final = frozenset({"attention.sliding_window", "rope.scaling.attn_factor"})
LAYER_NAMES: Final = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
DIVISORS: Final = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}


def phi3_keys(source: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `config.json` that only Phi-3 has, rotary settings among them.

    Raises:
        CheckpointError: for a value of another type, or out of range, and other rotary scaling than LongRoPE.
    """
    fields, head_dim = source.metadata, int(config["head_dim"])
    turned = fields.integer(source.key(".rope.dimension_count"), head_dim, low=2, high=head_dim)
    context = int(config["max_position_embeddings"])
    original = fields.integer(source.key(".rope.scaling.original_context_length"), context, low=1, high=2**30)
    # transformers rounds the product down
    share = turned / head_dim if int(head_dim * (turned / head_dim)) == turned else (turned + 0.5) / head_dim
    return {
        "model_type": "phi3",
        "sliding_window": fields.integer(source.key(".attention.sliding_window"), 0, low=0, high=2**30) or None,
        "original_max_position_embeddings": original,
        "partial_rotary_factor": share,
        "rope_scaling": _scaling(source, turned, context, original),
    }


def _scaling(source: GgufFile, turned: int, context: int, original: int) -> dict[str, Any] | None:
    kind = source.metadata.text(source.key(".rope.scaling.type"), "none")
    factors = [source.get(key) for key in (".rope.scaling.factor", ".rope.scale_linear")]
    factor = next((one for one in factors if one not in (None, 0.0, 1.0)), None)
    if kind not in ("none", "longrope") or factor is not None:
        by = "" if factor is None else f" by {shown_json(factor)}"
        raise CheckpointError(
            f"{source.path} has rope scaling {shown_json(kind)}{by}; of phi3, none and longrope are converted"
        )
    stored = source.metadata.number(source.key(".rope.scaling.attn_factor"), 1.0, low=0.0) or 1.0
    found = [name for name in DIVISORS.values() if name in source.tensors]
    if not found and kind == "none" and stored == 1.0:
        return None
    if len(found) < len(DIVISORS):
        missing = next(name for name in DIVISORS.values() if name not in found)
        raise CheckpointError(f"{source.path} has longrope scaling but no tensor {missing}; download it again")
    ratio = context / original
    known = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 and original > 1 else 1.0
    tables = {key: _table(source, name, turned // 2) for key, name in DIVISORS.items()}
    is_known = math.isclose(stored, known, rel_tol=1e-6)  # an fp32 copy of what the formula gives
    return {"rope_type": "longrope", **tables} | ({} if is_known else {"attention_factor": stored})


def _table(source: GgufFile, name: str, num_planes: int) -> list[float]:
    tensor = source.tensors[name]
    if tensor.kind != "F32" or tensor.shape != (num_planes,):
        raise CheckpointError(
            f"{source.path} stores {name} as {tensor.kind} {list(tensor.shape)}, expected F32"
            f" [{num_planes}]; {ORIGINAL}"
        )
    values: list[float] = torch.from_numpy(tensor.read().reshape(-1)).view(torch.float32).tolist()
    if not all(0 < value < math.inf for value in values):
        raise CheckpointError(f"{source.path} has a divisor in {name} that is no number above 0; download it again")
    return values
