"""Draft models as complete Hugging Face directories: what vLLM, SGLang and `transformers` load."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from outrider.errors import ConfigError
from outrider.formats.hf_draft import EMBEDDING, HEAD, MASK, read_draft, widened, write_draft
from outrider.interop.exported import Export, Exported

__all__ = ["reads", "write", "write_complete"]

CONFIG_KEYS = ("pard_token", "spd_type")


def reads(config: Mapping[str, Any]) -> bool:
    return "num_hidden_layers" in config and "vocab_size" in config


def write(export: Export) -> Exported:
    if export.engine == "speculators":
        raise ConfigError("the speculators layout has no draft models; export with --to vllm")
    write_complete(export)
    if export.engine == "sglang":
        flags = {
            "speculative-algorithm": "STANDALONE",
            "speculative-draft-model-path": export.output,
            "speculative-num-steps": export.num_nodes,
            "speculative-eagle-topk": 1,
            "speculative-num-draft-tokens": export.num_nodes + 1,
        }
        return Exported(speculative=flags)
    speculative = {"method": "draft_model", "model": str(export.output), "num_speculative_tokens": export.num_nodes}
    return Exported(speculative=speculative)


def write_complete(export: Export) -> None:
    """Write every tensor under its usual name, with as many vocabulary rows as the target has."""
    stored = read_draft(str(export.checkpoint), export.target)
    tensors: dict[str, Tensor] = dict(stored.tensors)
    spec = stored.spec
    if stored.is_slim:
        shared = export.target.shared_weights()
        tensors[EMBEDDING] = shared.embedding_VE
        spec = replace(spec, tie_word_embeddings=shared.head_VE is shared.embedding_VE and stored.mask_id is None)
        if not spec.tie_word_embeddings:
            tensors[HEAD] = shared.head_VE
    if stored.mask_id is not None and MASK in tensors:
        tensors[EMBEDDING] = tensors[EMBEDDING].clone()
        tensors[EMBEDDING][stored.mask_id] = tensors.pop(MASK).to(tensors[EMBEDDING])
    vocab_size = export.target.spec.vocab_size
    spec = replace(spec, vocab_size=vocab_size)
    extra = {key: stored.config[key] for key in CONFIG_KEYS if key in stored.config}
    write_draft(export.output, spec, widened(tensors, vocab_size), export.target, torch.bfloat16, {}, extra)
