"""Medusa heads for vLLM, which drafts a chain of each head's best token (vLLM 0.33 removed Medusa).

vLLM's layout has a `token_map` for a reduced vocabulary, but version 0.32 stops because it has not loaded the map. So
exports hold an output for the whole vocabulary; see `whole_vocabulary`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from outrider.errors import ConfigError
from outrider.export.exported import Export, Exported
from outrider.export.serving import Order, served_checkpoint
from outrider.formats.locate import locate
from outrider.formats.medusa import read_medusa, write_medusa
from outrider.formats.store import provenance
from outrider.models.medusa import LM_HEAD, TOKEN_MAP, MedusaShape
from outrider.proposers.medusa import MedusaConfig

__all__ = ["on_vllm", "reads", "whole_vocabulary", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "medusa" or "medusa_num_heads" in config


def on_vllm(order: Order) -> Exported:
    config: MedusaConfig = order.config
    num_heads = read_medusa(locate(config.checkpoint or ""), order.target).shape.num_heads
    return served_checkpoint(order, config.checkpoint, min(num_heads, config.num_nodes))


def write(export: Export) -> Exported:
    if export.engine != "vllm":
        raise ConfigError(f"{export.engine} has no Medusa; export with --to vllm")
    checkpoint = read_medusa(export.checkpoint, export.target)
    shape, tensors = checkpoint.shape, dict(checkpoint.tensors)
    if export.num_nodes > shape.num_heads:
        raise ConfigError(f"num_nodes={export.num_nodes} exceeds the {shape.num_heads} heads of {export.checkpoint}")
    if shape.output == "target":
        shape = replace(shape, output="one")
        tensors[LM_HEAD] = export.target.shared_weights().head_VE
    if shape.is_reduced:
        shape, tensors = whole_vocabulary(shape, tensors)
    stored = {
        name: tensor if tensor.dtype == torch.int64 else tensor.to(torch.bfloat16) for name, tensor in tensors.items()
    }
    write_medusa(export.output, shape, stored, "vllm", provenance(export.target))
    return Exported(
        speculative=export.speculative("medusa"),
        notes=("vLLM drafts a chain, not the tree", "vLLM has Medusa up to version 0.32"),
    )


def whole_vocabulary(shape: MedusaShape, tensors: Mapping[str, Tensor]) -> tuple[MedusaShape, dict[str, Tensor]]:
    """Return heads without a token map that draft the same tokens, from outputs of the vocabulary's size.

    A token outside the map gets the row of the mapped token with the smallest id. Both then have the same logit, and
    argmax takes the smaller id of equal logits.
    """
    ids_K = tensors[TOKEN_MAP]
    rows_V = torch.full((shape.vocab_size,), int(ids_K.argmin()))
    rows_V[ids_K] = torch.arange(len(ids_K))
    whole = {
        name: tensor[rows_V] if name.startswith("lm_head") else tensor
        for name, tensor in tensors.items()
        if name != TOKEN_MAP
    }
    return replace(shape, num_columns=shape.vocab_size), whole
