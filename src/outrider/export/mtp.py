"""Multi-token prediction modules for vLLM, in the layout of MiMo, beside an unchanged target.

vLLM reads the number of modules from the *target's* config, so the server gets it through `--hf-overrides`. The modules
read the output of the target's class: for Llama, Mistral, Qwen2 and Qwen3 that is the state after the final norm,
`state="normed"` in training.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

from outrider.errors import ConfigError
from outrider.export.exported import Export, Exported
from outrider.export.serving import Order, served_checkpoint
from outrider.formats.locate import locate
from outrider.formats.mtp import read_mtp, write_mtp
from outrider.proposers.mtp import MtpConfig, trained_depths

__all__ = ["on_vllm", "reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("num_nextn_predict_layers"), int)


def on_vllm(order: Order) -> Exported:
    config: MtpConfig = order.config
    checkpoint = read_mtp(locate(config.checkpoint or ""), order.target)
    # a single module drafts several tokens by repetition
    depth = checkpoint.num_modules if checkpoint.num_modules > 1 else trained_depths(checkpoint)
    num_nodes = config.depth or depth if config.width > 1 else config.num_nodes or depth
    if num_nodes % checkpoint.num_modules:
        raise ConfigError(
            f"vLLM drafts a multiple of the {checkpoint.num_modules} modules of {config.checkpoint}, not {num_nodes} "
            f"tokens; set num_nodes={checkpoint.num_modules}"
        )
    notes = ["vLLM drafts a chain, not the tree"] if config.width > 1 else []
    return served_checkpoint(order, config.checkpoint, num_nodes, *notes)


def write(export: Export) -> Exported:
    if export.engine != "vllm":
        raise ConfigError(f"{export.engine} does not load this layout; export with --to vllm")
    checkpoint = read_mtp(export.checkpoint, export.target)
    if checkpoint.state != "normed":
        raise ConfigError(
            f'{export.checkpoint} was trained with state="{checkpoint.state}", but vLLM feeds the state after the '
            'final norm, unless the target is a MiMo; train with state="normed"'
        )
    write_mtp(export.output, checkpoint, torch.bfloat16)
    return Exported(
        speculative=export.speculative("mtp"),
        flags={"hf-overrides": json.dumps({"num_nextn_predict_layers": checkpoint.num_modules})},
        notes=("vLLM runs the first module alone, again for every further token",),
    )
