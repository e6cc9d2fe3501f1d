"""P-EAGLE heads for vLLM, in either of its layouts; it runs them as EAGLE-3 heads with parallel drafting."""

from collections.abc import Mapping
from typing import Any

from outrider.errors import ConfigError
from outrider.export import eagle3
from outrider.export.exported import Export, Exported
from outrider.export.serving import Order, served_checkpoint
from outrider.formats.blocks.peagle import KIND
from outrider.formats.eagle3_speculators import is_speculators
from outrider.formats.hf_config import names_mask
from outrider.proposers.peagle import PEagleConfig

__all__ = ["on_vllm", "reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    if is_speculators(config):
        return bool(config["speculators_model_type"] == KIND)
    return "draft_vocab_size" in config and names_mask(config)


def on_vllm(order: Order) -> Exported:
    config: PEagleConfig = order.config
    return served_checkpoint(order, config.checkpoint, config.num_nodes)


def write(export: Export) -> Exported:
    if export.engine == "sglang":
        raise ConfigError("SGLang has no parallel drafting, which a P-EAGLE head is made for; export with --to vllm")
    exported = eagle3.write(export)
    return Exported(speculative={**exported.speculative, "parallel_drafting": True})
