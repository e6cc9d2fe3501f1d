"""DFlash networks for vLLM, in either of its layouts, and for SGLang.

Both draft a chain. vLLM runs a block of one slot more than the tokens it is told to draft, SGLang the block it is told.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from outrider.errors import ConfigError
from outrider.export.exported import Export, Exported, served_name
from outrider.export.serving import Order, served_checkpoint
from outrider.formats.blocks.dflash import read_dflash, write_native, write_speculators
from outrider.formats.blocks.dflash_config import KIND, KINDS, SECTION
from outrider.formats.locate import locate
from outrider.models.blocks.dflash import DFlashSpec
from outrider.proposers.dflash import DFlashConfig
from outrider.records.json_fields import read_json

__all__ = ["block_flags", "on_vllm", "reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    return config.get(KIND) in KINDS or SECTION in config


def on_vllm(order: Order) -> Exported:
    config: DFlashConfig = order.config
    spec = read_dflash(locate(config.checkpoint or ""), order.target).spec
    notes = ["vLLM drafts a chain, not the tree"] if config.width > 1 else []
    most = (config.block_size or spec.block_size) - spec.first_slot
    return served_checkpoint(order, config.checkpoint, min(config.num_nodes, most), *notes)


def block_flags(place: str | Path, block_size: int) -> dict[str, Any]:
    """Return SGLang's flags for a block of so many slots."""
    return {
        "speculative-algorithm": "DFLASH",
        "speculative-draft-model-path": place,
        "speculative-dflash-block-size": block_size,
    }


def write(export: Export) -> Exported:
    checkpoint, num_layers = read_dflash(export.checkpoint, export.target), export.target.spec.num_layers
    _check(checkpoint.spec, export)
    if export.engine == "speculators":
        directory = export.target.checkpoint()
        if directory is None:
            raise ConfigError("the speculators layout names the target's class; load the target from a directory")
        write_speculators(
            export.output,
            checkpoint,
            torch.bfloat16,
            verifier=served_name(export.target),
            architectures=read_json(directory / "config.json").get("architectures") or [],
            target_layers=num_layers,
        )
        return Exported(speculative=export.speculative("dspark" if checkpoint.spec.markov_rank else "dflash"))
    write_native(export.output, checkpoint, num_layers, torch.bfloat16)
    if export.engine == "vllm":
        return Exported(speculative=export.speculative("dflash"))
    return Exported(speculative=block_flags(export.place, export.num_nodes + checkpoint.spec.first_slot))


def _check(spec: DFlashSpec, export: Export) -> None:
    if spec.markov_rank and export.engine != "speculators":
        raise ConfigError(f"{export.checkpoint} has a Markov head; export it with --to speculators")
    if 0 in spec.layer_ids:
        raise ConfigError(f"{export.checkpoint} reads the target's embedding, which the engines' layouts cannot name")
    most = spec.block_size - spec.first_slot
    if export.num_nodes > most:
        raise ConfigError(
            f"num_nodes={export.num_nodes} exceeds the {most} tokens that a block of {export.checkpoint} drafts"
        )
