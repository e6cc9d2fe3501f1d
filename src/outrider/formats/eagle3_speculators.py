"""EAGLE-3 heads in the layout of the speculators library: conversion of its config to and from the native one.

    {"speculators_model_type": "eagle3", "draft_vocab_size": 32000, "norm_before_residual": false, ...,
     "transformer_layer_config": {"model_type": "llama", ...},                  the layer, as a Llama config
     "speculators_config": {"proposal_methods": [{"speculative_tokens": 5, ...}],
                            "verifier": {"name_or_path": "Qwen/Qwen2.5-7B-Instruct", ...}}}

The tensors are the native ones with `layers.0.` for `midlayer.`. The library stores an embedding, which may be left out
if it equals the target's.

vLLM reads a missing `norm_before_residual` as true, the library that writes these files as false. So it is always
written, and a file without it is refused. A P-EAGLE head is of type "peagle", of which both read it as false, and has
a `mask_token_id`.

Example: `native_of(config, file)["hidden_size"]` is the hidden size of `transformer_layer_config`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outrider.errors import CheckpointError
from outrider.formats.blocks.peagle import ARCHITECTURE, MASK
from outrider.formats.blocks.peagle import KIND as PARALLEL
from outrider.formats.hf_config import MASK_KEYS
from outrider.records.display import shown_json

__all__ = ["is_speculators", "native_of", "speculators_of"]

KIND = "speculators_model_type"
LAYER_CONFIG = "transformer_layer_config"
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
VERSION = "0.9.0"
COPIED = ("draft_vocab_size", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")


def is_speculators(config: Mapping[str, Any]) -> bool:
    """Return whether a config is in this layout."""
    return KIND in config


def native_of(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Convert a config of this layout to the native one.

    Raises:
        CheckpointError: for another kind of head, or if a key that decides the arithmetic is missing.
    """
    if config[KIND] not in ("eagle3", PARALLEL):
        raise CheckpointError(
            f"{file} has {KIND} {shown_json(config[KIND])}; only 'eagle3' and '{PARALLEL}' are read here"
        )
    layer = config.get(LAYER_CONFIG)
    if not isinstance(layer, dict):
        raise CheckpointError(f"{file} has no {LAYER_CONFIG}, which must hold the layer's config")
    if not isinstance(config.get("norm_before_residual"), bool) and config[KIND] != PARALLEL:
        raise CheckpointError(
            f"{file} does not say norm_before_residual, which engines read differently; add it as it was trained"
        )
    native = {**layer, **{key: config.get(key) for key in COPIED}}
    for key in ("target_hidden_size", LAYER_IDS, MASK):
        if config.get(key) is not None:
            native[key] = config[key]
    return native


def speculators_of(
    native: Mapping[str, Any], verifier: str, architectures: Sequence[str], num_tokens: int
) -> dict[str, Any]:
    """Convert a native config to this layout.

    Args:
        verifier: the target's hub id or directory.
        architectures: the target's classes, such as ["Qwen2ForCausalLM"].
        num_tokens: tokens that an engine drafts by default.
    """
    # keys of the head itself; all others belong to its layer
    outer = {*COPIED, "target_hidden_size", "num_aux_hidden_states", "eagle_config", "outrider", "architectures"}
    outer |= {*MASK_KEYS}
    is_parallel = MASK in native
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": num_tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURE if is_parallel else "Eagle3Speculator"],
        KIND: PARALLEL if is_parallel else "eagle3",
        "speculators_version": VERSION,
        "target_hidden_size": native["target_hidden_size"],
        LAYER_CONFIG: {key: value for key, value in native.items() if key not in outer},
        "speculators_config": {
            "algorithm": PARALLEL if is_parallel else "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [method],
            "verifier": {"name_or_path": verifier, "architectures": list(architectures)},
        },
    }
    for key in COPIED:
        config[key] = native.get(key, False)
    layer_ids = native.get("eagle_config", {}).get(LAYER_IDS)
    if layer_ids is not None:
        config[LAYER_IDS] = layer_ids
    return config | {key: native[key] for key in (MASK, "outrider") if key in native}
