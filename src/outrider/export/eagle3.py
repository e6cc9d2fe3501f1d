"""EAGLE-3 heads for vLLM, in either of its layouts, and for SGLang."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from outrider.errors import ConfigError
from outrider.export.exported import Export, Exported, served_name
from outrider.export.serving import Order, served_checkpoint
from outrider.formats.eagle3 import read_eagle3, write_native, write_speculators
from outrider.formats.eagle3_speculators import is_speculators
from outrider.proposers.eagle3 import Eagle3Config
from outrider.records.json_fields import read_json

__all__ = ["chain_depth", "on_vllm", "reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures") or []
    return is_speculators(config) or any("Eagle3" in name for name in names) or "draft_vocab_size" in config


def on_vllm(order: Order) -> Exported:
    config: Eagle3Config = order.config
    notes = ["vLLM drafts a chain, not the tree"] if config.width > 1 or config.tree else []
    return served_checkpoint(order, config.checkpoint, chain_depth(config), *notes)


def chain_depth(config: Eagle3Config) -> int:
    """Return the length of the longest chain of a draft."""
    depth = max(path.count(".") + 1 for path in config.tree.split()) if config.tree else config.levels
    return min(depth, config.num_nodes)


def write(export: Export) -> Exported:
    checkpoint = read_eagle3(export.checkpoint, export.target)
    if checkpoint.spec.reads_normed and checkpoint.spec.has_fc:
        raise ConfigError(
            f"{export.checkpoint} fuses the target's state after its final norm, but the engines pass the one before it"
        )
    if export.engine == "speculators":
        if not checkpoint.spec.has_fc:
            raise ConfigError(f"{export.checkpoint} has no fc.weight, which the speculators layout has; use --to vllm")
        architectures = read_json(_config_file(export)).get("architectures") or []
        write_speculators(
            export.output,
            checkpoint,
            torch.bfloat16,
            verifier=served_name(export.target),
            architectures=architectures,
            num_tokens=export.num_nodes,
        )
        return Exported(speculative=export.speculative("eagle3"))
    # refuse rather than export a head whose drafts would be rejected
    if export.engine == "sglang" and checkpoint.spec.norm_before_residual:
        raise ConfigError("SGLang ignores norm_before_residual=true, so this head would draft wrongly there; use vLLM")
    if export.engine == "sglang" and checkpoint.spec.layer.num_layers > 1:
        raise ConfigError(
            f"{export.checkpoint} has {checkpoint.spec.layer.num_layers} layers, and SGLang reads other norms in the "
            "further ones; use vLLM"
        )
    write_native(export.output, checkpoint, torch.bfloat16)
    if export.engine == "vllm":
        return Exported(speculative=export.speculative("eagle3"))
    windows = [window for window in checkpoint.spec.layer.windows if window is not None]
    notes = {
        "SGLang counts layer ids from the state after a layer": bool(checkpoint.spec.layer_ids),
        f"SGLang lets the head see all of the text, not the last {max(windows, default=0)} positions": bool(windows),
    }
    said = tuple(note for note, is_due in notes.items() if is_due)
    return Exported(speculative=export.sglang_flags("EAGLE3"), notes=said)


def _config_file(export: Export) -> Path:
    directory = export.target.checkpoint()
    if directory is None:
        raise ConfigError("the speculators layout names the target's class; load the target from a directory")
    return directory / "config.json"
