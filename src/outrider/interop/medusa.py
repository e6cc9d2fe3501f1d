"""Medusa heads for vLLM, which drafts a chain of each head's best token with them (removed there in 0.33)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from outrider.errors import ConfigError
from outrider.formats.medusa import read_medusa, write_medusa
from outrider.formats.store import provenance
from outrider.interop.exported import Export, Exported
from outrider.interop.serving import Order, served_checkpoint
from outrider.models.locate import locate
from outrider.models.medusa import LM_HEAD
from outrider.proposers.medusa import MedusaConfig

__all__ = ["on_vllm", "reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "medusa" or "medusa_num_heads" in config


def on_vllm(order: Order) -> Exported:
    config: MedusaConfig = order.config
    num_heads = read_medusa(locate(config.checkpoint), order.target).shape.num_heads
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
    stored = {
        name: tensor if tensor.dtype == torch.int64 else tensor.to(torch.bfloat16) for name, tensor in tensors.items()
    }
    write_medusa(export.output, shape, stored, "vllm", provenance(export.target))
    speculative = {"model": str(export.output), "num_speculative_tokens": export.num_nodes}
    return Exported(
        speculative={"method": "medusa", **speculative},
        notes=("vLLM drafts a chain, not the tree", "vLLM has Medusa up to version 0.32"),
    )
