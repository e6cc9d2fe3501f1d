"""PARD draft models for vLLM, which calls it parallel drafting."""

from collections.abc import Mapping
from typing import Any

from outrider.errors import ConfigError
from outrider.interop.draft_model import write_complete
from outrider.interop.exported import Export, Exported
from outrider.proposers.pard import names_mask

__all__ = ["reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    return "num_hidden_layers" in config and names_mask(config)


def write(export: Export) -> Exported:
    if export.engine != "vllm":
        raise ConfigError(f"{export.engine} has no parallel drafting; export with --to vllm")
    write_complete(export)
    return Exported(
        speculative={
            "method": "draft_model",
            "model": str(export.output),
            "num_speculative_tokens": export.num_nodes,
            "parallel_drafting": True,
        }
    )
