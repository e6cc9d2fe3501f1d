"""Multi-token prediction modules for vLLM, in the layout of MiMo; see `formats/mtp.py` for what vLLM does with it."""

from collections.abc import Mapping
from typing import Any

import torch

from outrider.errors import ConfigError
from outrider.formats.mtp import read_mtp, write_mtp
from outrider.interop.exported import Export, Exported

__all__ = ["reads", "write"]


def reads(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("num_nextn_predict_layers"), int)


def write(export: Export) -> Exported:
    if export.engine != "vllm":
        raise ConfigError(f"{export.engine} does not load this layout; export with --to vllm")
    checkpoint = read_mtp(export.checkpoint, export.target)
    if checkpoint.state != "residual":
        raise ConfigError(
            f'{export.checkpoint} was trained with state="{checkpoint.state}", but vLLM feeds the residual stream; '
            'train with state="residual"'
        )
    write_mtp(export.output, checkpoint, torch.bfloat16)
    speculative = {"method": "mtp", "model": str(export.output), "num_speculative_tokens": export.num_nodes}
    return Exported(speculative=speculative, notes=("vLLM runs the first module alone, again for every further token",))
