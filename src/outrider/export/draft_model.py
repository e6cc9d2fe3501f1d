"""Draft models as complete Hugging Face directories, which vLLM, SGLang and `transformers` load."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.errors import ConfigError
from outrider.export.exported import Export, Exported, export_into
from outrider.export.serving import Order, served_checkpoint
from outrider.formats.hf_draft import EMBEDDING, HEAD, MASK, read_draft, widened, write_draft
from outrider.formats.weights import read_weights, settle_head
from outrider.models.spec import DecoderSpec
from outrider.proposers.draft_model import DraftModelConfig, layer_list
from outrider.target import Target

__all__ = ["on_vllm", "reads", "write", "write_complete", "write_layers"]

CONFIG_KEYS = ("pard_token", "spd_type")


def reads(config: Mapping[str, Any]) -> bool:
    return "num_hidden_layers" in config and "vocab_size" in config


def on_vllm(order: Order) -> Exported:
    config: DraftModelConfig = order.config
    depth, layers = config.num_nodes, config.layers
    notes = ["vLLM drafts a chain, not the tree"] if config.width > 1 else []
    if config.checkpoint is not None:
        return served_checkpoint(order, config.checkpoint, depth, *notes)
    assert layers is not None
    # layers of a target never change, so an earlier export is reused
    if not order.output.exists():
        export_into(order.output, lambda part: write_layers(order.target, layers, part))
    speculative = {"method": "draft_model", "model": str(order.output), "num_speculative_tokens": depth}
    return Exported(speculative=speculative, notes=tuple(notes))


def write_layers(target: Target, layers: str, directory: Path) -> Exported:
    """Write a draft model of some of the target's layers, such as "0,1,28,29", into an existing directory.

    Raises:
        ConfigError: if the target has no files, or a layer does not exist.
    """
    source = target.checkpoint()
    if source is None:
        raise ConfigError(f"layers={layers} are read from the target's files, but {target.spec.name} has none")
    kept, weights = layer_list(target, layers), read_weights(source)
    spec = settle_head(DecoderSpec.from_config_file(source), weights)
    spec = spec.of_layers(kept)
    sources = dict(enumerate(kept))
    tensors = {name: weights[_renumbered(name, sources)] for name in spec.weight_shapes()}
    write_draft(directory, spec, tensors, target, target.spec.dtype, {"layers": layers}, {})
    return Exported(speculative={})


def _renumbered(name: str, layers: Mapping[int, int]) -> str:
    """Return the tensor's name in the target.

    >>> _renumbered("model.layers.1.mlp.up_proj.weight", {0: 3, 1: 7})
    'model.layers.7.mlp.up_proj.weight'
    """
    head, found, rest = name.partition("model.layers.")
    if not found:
        return name
    layer, _, tail = rest.partition(".")
    return f"{head}{found}{layers[int(layer)]}.{tail}"


def write(export: Export) -> Exported:
    if export.engine == "speculators":
        raise ConfigError("the speculators layout has no draft models; export with --to vllm")
    write_complete(export)
    if export.engine == "sglang":
        return Exported(speculative=export.sglang_flags("STANDALONE"))
    return Exported(speculative=export.speculative("draft_model"))


def write_complete(export: Export) -> None:
    """Write every tensor under its usual name, with as many vocabulary rows as the target has."""
    stored = read_draft(str(export.checkpoint), export.target)
    tensors: dict[str, Tensor] = dict(stored.tensors)
    spec = stored.spec
    if stored.is_slim:
        shared = export.target.shared_weights()
        tensors[EMBEDDING] = shared.embedding_VE
        # a mask changes a row of the embedding alone, which unties the head
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
