"""PARD draft models for vLLM, whose name for the method is parallel drafting."""

from collections.abc import Mapping
from typing import Any

from outrider.errors import ConfigError
from outrider.export.draft_model import write_complete
from outrider.export.exported import Export, Exported
from outrider.export.serving import Order, served_checkpoint
from outrider.formats.hf_config import names_mask
from outrider.proposers.pard import PardConfig

__all__ = ["on_vllm", "reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    return "num_hidden_layers" in config and names_mask(config)


def on_vllm(order: Order) -> Exported:
    config: PardConfig = order.config
    return served_checkpoint(order, config.checkpoint, config.num_nodes)


def write(export: Export) -> Exported:
    if export.engine != "vllm":
        raise ConfigError(f"{export.engine} has no parallel drafting; export with --to vllm")
    write_complete(export)
    return Exported(speculative={**export.speculative("draft_model"), "parallel_drafting": True})
